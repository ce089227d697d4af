"""Cascade: two refiners in sequence, a coarse one first; every step of both is supervised."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.recursion import State, Tree
from components.refiners.core import Core, Inputs, Layout, shared_layers, shared_taps


class Cascade(Core):
    """All steps of ``coarse``, then those of ``fine`` from where it left off; both see the backbone's states.

    Args:
        dim: width of the states.
        coarse: takes dim.
        fine: takes dim.

    Raises:
        ValueError: they read the heads of different backbone layers.
    """

    def __init__(self, dim: int, coarse: Callable[..., Core], fine: Callable[..., Core]) -> None:
        super().__init__()
        self.coarse, self.fine = coarse(dim=dim), fine(dim=dim)
        self.dim, self.n_steps = dim, self.coarse.n_steps + self.fine.n_steps
        self.context_layers, self.taps = shared_layers(self.coarse, self.fine), shared_taps(self.coarse, self.fine)
        self.incremental = self.coarse.incremental and self.fine.incremental
        self.anchored = self.coarse.anchored and self.fine.anchored
        self.needs_confidence = self.coarse.needs_confidence or self.fine.needs_confidence
        self.architecture = {
            "core": "Cascade", "dim": dim, "coarse": self.coarse.architecture, "fine": self.fine.architecture
        }  # fmt: skip

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Draw the weights of both refiners, the coarse one's first."""
        self.coarse.init_weights(hidden_rms, generator)
        self.fine.init_weights(hidden_rms, generator)

    def condition(self, inputs: Inputs, layout: Layout) -> Tree:
        """Compute the condition of both refiners, side by side."""
        return {"coarse": self.coarse.condition(inputs, layout), "fine": self.fine.condition(inputs, layout)}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Tree) -> Tree:
        """Start from the carry of the coarse refiner, which runs first."""
        return self.coarse.initial_carry(hidden, condition["coarse"])

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Run a step of the refiner whose turn it is."""
        if number >= self.coarse.n_steps:
            return self.fine.step(number - self.coarse.n_steps, carry, condition["fine"], layout, statistics)
        state = self.coarse.step(number, carry, condition["coarse"], layout, statistics)
        if number < self.coarse.n_steps - 1:
            return state
        return replace(state, carry=self.fine.initial_carry(state.hidden, condition["fine"]))

    def compile_targets(self) -> list[nn.Module]:
        """List the modules of both refiners that are worth compiling."""
        return [*self.coarse.compile_targets(), *self.fine.compile_targets()]
