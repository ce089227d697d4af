"""Adapter: the control without recursion. As many parameters as the slot refiner, used once."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention import Attention, RMSNorm
from components.core import Core, Injection, Inputs, Layout, uniform_, zeros_
from components.orthogonality import mean_square
from components.recursion import State
from components.refiner import SlotRefiner


class Adapter(Core):
    """One transformer block on the backbone's states, with the same injection as the slot refiner, in one step.

    Args:
        dim: width of the states.
        heads: attention heads; must divide ``dim``.
        parameters: how many to have, to within one unit of the MLP (2 dim + 1); None = those of ``SlotRefiner(dim, heads)``.

    Raises:
        ValueError: too few parameters for the attention and one unit.
    """

    def __init__(self, dim: int, heads: int = 4, parameters: int | None = None) -> None:
        super().__init__()
        if parameters is None:
            with torch.device("meta"):
                parameters = sum(p.numel() for p in SlotRefiner(dim, heads).parameters())
        self.architecture = {"core": "Adapter", "dim": dim, "heads": heads, "parameters": parameters}
        self.dim, self.n_steps = dim, 1
        self.state_norm, self.injection = nn.LayerNorm(dim, bias=False), Injection(dim)
        self.attention_norm, self.mlp_norm = RMSNorm(dim), RMSNorm(dim)
        self.attention, self.out = Attention(dim, heads), nn.Linear(dim, dim, bias=False)
        rest = sum(p.numel() for p in self.parameters()) + dim
        width = (parameters - rest) // (2 * dim + 1)
        if width < 1:
            raise ValueError(f"an adapter of width {dim} needs at least {rest + 2 * dim + 1} parameters, got {parameters}")
        self.up, self.down = nn.Linear(dim, width), nn.Linear(width, dim)
        self.hidden_rms: Tensor
        self.register_buffer("hidden_rms", torch.ones(()))

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """U(+-1/sqrt(fan-in)); the output layer 0: no change at first."""
        self.hidden_rms.fill_(hidden_rms)
        uniform_(self, generator)
        zeros_(self.down)

    def condition(self, inputs: Inputs, layout: Layout) -> dict[str, Tensor]:
        """x, and what is injected."""
        return {"x": inputs.x, "injected": self.injection(inputs.x, inputs.embedding)}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states."""
        return {"hidden": hidden}

    def forward(
        self, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool = False
    ) -> State:
        """The only step."""
        hidden = carry["hidden"]
        u = self.state_norm(hidden) + condition["injected"]
        u = u + self.out(self.attention(self.attention_norm(u), layout.attention, layout.places))
        update = self.hidden_rms * self.down(F.gelu(self.up(self.mlp_norm(u))))
        refined = layout.kept(hidden + update, condition["x"])
        measured = {"delta": mean_square(update, layout.attention).sqrt()} if statistics else {}
        return State(refined, {"hidden": refined}, measured)
