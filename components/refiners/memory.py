"""Memory: what a refiner's recursion came to in one denoising pass is where it begins in the next, through a gate.

The carry that a pass ends with is handed to the pass after it, over the same sequences with fewer masks. Each state of the carry
begins at ``fresh + tanh(W [n(fresh), n(remembered)] / sqrt(2 dim) + b) * (remembered - fresh)``, n being division by the root mean
square: at 1 in the place of the fresh one, at 0 not at all. W and b start at 0, so that untrained memory is none. It is trained by
unrolling passes (``components.batch.Batch.later``).

Source: MetaState (arXiv 2603.01331, 2026), a working state carried over the passes of a frozen masked-diffusion model and trained
by unrolling them; there the state is slots of its own, here it is the refiner's carry.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.recursion import State, Tree
from components.refiners.core import Core, Inputs, Layout, zeros_


class Memory(Core):
    """A refiner whose later denoising passes begin at a mixture of the states as they always begin and those of the pass before.

    Args:
        dim: width of the states.
        refiner: takes dim; its carry is one set of states (``Core.remembered``).

    Raises:
        ValueError: the refiner's carry is none that can be mixed.
    """

    remembers = True

    def __init__(self, dim: int, refiner: Callable[..., Core]) -> None:
        super().__init__()
        self.refiner = refiner(dim=dim)
        if not self.refiner.remembered:
            raise ValueError(
                f"memory goes over a refiner whose carry is one set of states (SlotRefiner, RecursiveCore, MLPRefiner, Adapter, or "
                f"Tapped over one of them), not over {type(self.refiner).__name__}"
            )
        self.gates = nn.ModuleDict({name: nn.Linear(2 * dim, dim) for name in self.refiner.remembered})
        self.dim, self.n_steps = dim, self.refiner.n_steps
        self.context_layers, self.needs_confidence = self.refiner.context_layers, self.refiner.needs_confidence
        self.taps, self.anchored = self.refiner.taps, self.refiner.anchored
        self.architecture = {"core": "Memory", "dim": dim, "refiner": self.refiner.architecture}

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Fill the weights of the refiner; gates are closed at first."""
        self.refiner.init_weights(hidden_rms, generator)
        for gate in self.gates.values():
            assert isinstance(gate, nn.Linear)
            zeros_(gate)

    def condition(self, inputs: Inputs, layout: Layout) -> Tree:
        """Compute the refiner's condition, of which memory is no part."""
        return self.refiner.condition(inputs, layout)

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Tree) -> Tree:
        """Start where the refiner starts: the carry of a first pass."""
        return self.refiner.initial_carry(hidden, condition)

    def recalled(self, carry: Tree, memory: Tree) -> Tree:
        """Mix what the pass before ended with into the fresh carry of this one."""
        mixed = dict(carry)
        for name, gate in self.gates.items():
            fresh, remembered = carry[name], memory[name]
            both = torch.cat([F.rms_norm(state, (self.dim,)) for state in (fresh, remembered)], -1)
            mixed[name] = fresh + torch.tanh(gate(both * (2 * self.dim) ** -0.5)) * (remembered - fresh)
        return mixed

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Run a step of the refiner, in any pass."""
        return self.refiner.step(number, carry, condition, layout, statistics)

    def compile_targets(self) -> list[nn.Module]:
        """Name what the refiner would compile."""
        return self.refiner.compile_targets()
