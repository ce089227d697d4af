"""RecursiveNetwork: the network that both updates of a two-state recursion share. Post-norm blocks: states of rms 1 go in and
come out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.nn.attention import Attention, angles, standing
from components.nn.fused import Linear, Turn, attended, gated, heads_of, normed_sum
from components.refiners.core import Layout


class RecursiveNetwork(nn.Module):
    """sum of states -> blocks of (attention, SwiGLU), a norm without weights after each.

    Source: Jolicoeur-Martineau (2025), figure 1 and table 1; SwiGLU: Shazeer, "GLU Variants Improve Transformer" (2020).

    Args:
        dim: width.
        heads: attention heads; must divide ``dim``.
        blocks: how many.
        expansion: width of the SwiGLU over 2/3 ``dim``, rounded up to a multiple of 8.
        rotary: attention sees distances.
    """

    def __init__(self, dim: int, heads: int, blocks: int, expansion: float, rotary: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, expansion, rotary) for _ in range(blocks))
        self.head, self.rotary = dim // heads, rotary

    def init_weights(self, generator: torch.Generator) -> None:
        """N(0, 1 / fan-in), cut at two standard deviations and widened to keep the variance."""
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                std = linear.in_features**-0.5 / 0.8796
                nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std, generator=generator)

    def forward(
        self,
        state: Float[Tensor, "batch seq dim"],
        other: Float[Tensor, "batch seq dim"],
        question: Float[Tensor, "batch seq dim"] | None,
        layout: Layout,
    ) -> Float[Tensor, "batch seq dim"]:
        z = state + other if question is None else state + other + question
        turn = angles(standing(z, layout.places), self.head) if self.rotary else None
        for block in self.blocks:
            z = block(z, layout, turn)
        return z


class PostNormBlock(nn.Module):
    """z = norm(z + out(attention(z))); z = norm(z + down(silu(gate) * up))."""

    def __init__(self, dim: int, heads: int, expansion: float, rotary: bool) -> None:
        super().__init__()
        width = -(-round(expansion * dim * 2 / 3) // 8) * 8
        self.attention, self.out = Attention(dim, heads, rotary), Linear(dim, dim)
        self.attention.qkv = Linear(dim, 3 * dim)
        self.gate_up, self.down = Linear(dim, 2 * width), Linear(width, dim)

    def forward(self, z: Float[Tensor, "batch seq dim"], layout: Layout, turn: Turn | None) -> Float[Tensor, "batch seq dim"]:
        q, k, v = heads_of(self.attention.qkv(z), self.attention.heads, turn)
        if layout.cache is not None:
            k, v = layout.cache.extended(k), layout.cache.extended(v)
        z = normed_sum(z, self.out(attended(q, k, v, layout.visible(z))))
        return normed_sum(z, self.down(gated(self.gate_up(z))))
