"""Residual: what refiners share that change states by the output of an MLP, seeing x and the token embeddings at every step."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.recursion import State
from components.refiners.core import Core, Injection, Inputs, Layout, uniform_, zeros_
from components.refiners.statistics import mean_square


class Residual(Core):
    """hidden += rms * down(features(norm(hidden) + what is injected)); a refiner says what the features are, and makes ``down``.

    Args:
        dim: width of the states.
        steps: supervised steps.
    """

    remembered = ("hidden",)
    down: nn.Linear

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.dim, self.n_steps = dim, steps
        self.state_norm, self.injection = nn.LayerNorm(dim, bias=False), Injection(dim)
        self.hidden_rms: Tensor
        self.register_buffer("hidden_rms", torch.ones(()))

    def features(self, u: Float[Tensor, "batch seq dim"], layout: Layout) -> Float[Tensor, "batch seq width"]:
        """Compute the features that the update is a projection of."""
        raise NotImplementedError

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """U(+-1/sqrt(fan-in)); the output layer 0: no change at first."""
        self.hidden_rms.fill_(hidden_rms)
        uniform_(self, generator)
        zeros_(self.down)

    def condition(self, inputs: Inputs, layout: Layout) -> dict[str, Tensor]:
        """Compute x and what every step sees of it."""
        return {"x": inputs.x, "injected": self.injection(inputs.x, inputs.embedding)}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Start from the states that the backbone hands over."""
        return {"hidden": hidden}

    def forward(
        self, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool = False
    ) -> State:
        """Run one step: add a small update to the states."""
        hidden = carry["hidden"]
        update = self.hidden_rms * self.down(self.features(self.state_norm(hidden) + condition["injected"], layout))
        refined = layout.where(hidden + update, condition["x"])
        measured = {"delta": mean_square(update, layout.attention).sqrt()} if statistics else {}
        return State(refined, {"hidden": refined}, measured)
