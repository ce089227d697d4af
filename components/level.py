"""Level: the network that both updates of a two-state recursion share. Post-norm blocks: states of rms 1 go in and come out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.attention import Attention, angles
from components.core import Layout
from components.fused import heads_of, attended, gated, normed_sum, product


class Level(nn.Module):
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
        for block in self.blocks:
            z = block(z, layout)
        return z


class PostNormBlock(nn.Module):
    """z = norm(z + out(attention(z))); z = norm(z + down(silu(gate) * up))."""

    def __init__(self, dim: int, heads: int, expansion: float, rotary: bool) -> None:
        super().__init__()
        width = -(-round(expansion * dim * 2 / 3) // 8) * 8
        self.attention, self.out = Attention(dim, heads, rotary), nn.Linear(dim, dim, bias=False)
        self.gate_up, self.down = nn.Linear(dim, 2 * width, bias=False), nn.Linear(width, dim, bias=False)

    def forward(self, z: Float[Tensor, "batch seq dim"], layout: Layout) -> Float[Tensor, "batch seq dim"]:
        a = self.attention
        turn = angles(a.qkv.in_features // a.heads, z.shape[1], z.device, z.dtype) if a.rotary else None
        heads = attended(*heads_of(product(z, a.qkv.weight), a.heads, turn), layout.attention)
        z = normed_sum(z, product(heads, self.out.weight))
        return normed_sum(z, product(gated(product(z, self.gate_up.weight)), self.down.weight))
