"""Adapter: the control without recursion. As many parameters as the slot refiner, used once."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.nn.attention import Attention, RMSNorm
from components.ranges import PositiveInt
from components.refiners.core import Layout
from components.refiners.refiner import SlotRefiner
from components.refiners.residual import Residual


class Adapter(Residual):
    """One transformer block on the backbone's states, with the same injection as the slot refiner, in one step.

    Args:
        dim: width of the states.
        heads: attention heads; must divide ``dim``.
        parameters: how many to have, to within one unit of the MLP (2 dim + 1); None = those of ``SlotRefiner(dim, heads)``.

    Raises:
        ValueError: too few parameters for the attention and one unit.
    """

    incremental = True

    def __init__(self, dim: int, heads: PositiveInt = 4, parameters: PositiveInt | None = None) -> None:
        super().__init__(dim, steps=1)
        if parameters is None:
            with torch.device("meta"):
                parameters = sum(p.numel() for p in SlotRefiner(dim, heads).parameters())
        self.architecture = {"core": "Adapter", "dim": dim, "heads": heads, "parameters": parameters}
        self.attention_norm, self.mlp_norm = RMSNorm(dim), RMSNorm(dim)
        self.attention, self.out = Attention(dim, heads), nn.Linear(dim, dim, bias=False)
        rest = sum(p.numel() for p in self.parameters()) + dim
        width = (parameters - rest) // (2 * dim + 1)
        if width < 1:
            raise ValueError(f"an adapter of width {dim} needs at least {rest + 2 * dim + 1} parameters, got {parameters}")
        self.up, self.down = nn.Linear(dim, width), nn.Linear(width, dim)

    def features(self, u: Float[Tensor, "batch seq dim"], layout: Layout) -> Float[Tensor, "batch seq width"]:
        """Compute the hidden layer of a pre-norm transformer block's MLP."""
        u = u + self.out(self.attention(self.attention_norm(u), layout.visible(u), layout.places, layout.cache))
        return F.gelu(self.up(self.mlp_norm(u)))
