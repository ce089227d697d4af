"""Transformer parts; what a token may see is the caller's to say (``components.refiners.core.Layout.visible``).

``Attention`` stops at the concatenated head output, *before* the output projection: that is what the refiner's context slot is made
from; ``Block`` adds the projection and the MLP.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.nn.key_value_cache import KeyValueCache


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension. Source: Zhang and Sennrich (2019)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head self-attention up to the concatenated head output; the output projection is the caller's.

    Args:
        dim: width.
        heads: must divide ``dim``.
        rotary: queries and keys are turned by their positions (``rotate``).

    Raises:
        ValueError: ``heads`` is not positive or does not divide ``dim``, or heads are of odd width and rotary.
    """

    def __init__(self, dim: int, heads: int, rotary: bool = False) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be at least 1, got {heads}")
        if dim % heads:
            raise ValueError(f"heads must divide dim, got dim {dim} and heads {heads} ({dim / heads:g} channels a head)")
        if rotary and dim // heads % 2:
            raise ValueError(f"rotary positions need heads of even width, got {dim // heads} (dim {dim}, heads {heads})")
        self.heads, self.rotary = heads, rotary
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        visible: Bool[Tensor, "_ 1 _ keys"] | None,
        places: Int[Tensor, "batch seq"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        q, k, v = rearrange(self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.heads).unbind(0)
        if self.rotary:
            q, k = rotate(q, places), rotate(k, places)
        if cache is not None:
            k, v = cache.extended(k), cache.extended(v)
        return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=visible), "b h s d -> b s (h d)")


def rotate(
    x: Float[Tensor, "batch heads seq head"], places: Int[Tensor, "batch seq"] | None = None, base: float = 1000.0
) -> Float[Tensor, "batch heads seq head"]:
    """Turn pair (i, i + head/2) at position p by p * base^(-2i/head): products of queries and keys then know distances.

    ``places`` says where each token stands; None = 0, 1, 2 ... ``base`` is 1000, where the source has 10,000: the slowest
    pair turns once in 6,283 positions at most, not in 62,832.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), section 3.2.
    """
    cos, sin = angles(standing(x, places), x.shape[-1], base)
    return turned(x, cos.to(x.dtype), sin.to(x.dtype))


def standing(x: Float[Tensor, "*rows seq dim"], places: Int[Tensor, "batch seq"] | None) -> Int[Tensor, "*one seq"]:
    """Where each token of ``x`` stands, for any head: at ``places``; None = 0, 1, 2 ..."""
    return torch.arange(x.shape[-2], device=x.device) if places is None else rearrange(places, "b s -> b 1 s")


def angles(
    position: Int[Tensor, "*batch seq"], head: int, base: float = 1000.0
) -> tuple[Float[Tensor, "*batch seq half"], Float[Tensor, "*batch seq half"]]:
    """Cosines and sines of ``rotate``'s turns, for heads of width ``head``."""
    half = head // 2
    frequency = base ** -(torch.arange(half, device=position.device) / half)
    angle = position[..., None] * frequency
    return angle.cos(), angle.sin()


def turned(
    x: Float[Tensor, "batch heads seq head"], cos: Float[Tensor, "*some seq half"], sin: Float[Tensor, "*some seq half"]
) -> Float[Tensor, "batch heads seq head"]:
    """``x`` with pair (i, i + head/2) turned."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """Pre-norm transformer block: x += out(attention(norm(x))); x += mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4, rotary: bool = False) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, heads, rotary)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = RMSNorm(dim)
        self.up = nn.Linear(dim, mlp_ratio * dim, bias=False)
        self.down = nn.Linear(mlp_ratio * dim, dim, bias=False)

    def init_weights(self, out_std: float, generator: torch.Generator) -> None:
        """Projections in: N(0, 0.49 / dim). Projections back into the residual stream: N(0, out_std^2)."""
        in_std = 0.7 * self.up.in_features**-0.5
        for linear, std in ((self.attention.qkv, in_std), (self.up, in_std), (self.out, out_std), (self.down, out_std)):
            nn.init.normal_(linear.weight, std=std, generator=generator)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        visible: Bool[Tensor, "_ 1 _ keys"] | None,
        places: Int[Tensor, "batch seq"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        return self.with_heads(x, visible, places, cache)[0]

    def with_heads(
        self,
        x: Float[Tensor, "batch seq dim"],
        visible: Bool[Tensor, "_ 1 _ keys"] | None,
        places: Int[Tensor, "batch seq"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq dim"]]:
        """Return the output of the block, and its concatenated head output."""
        heads = self.attention(self.attention_norm(x), visible, places, cache)
        x = x + self.out(heads)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)))), heads
