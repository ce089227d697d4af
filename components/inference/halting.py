"""Halting: at inference a sequence leaves the recursion as soon as a rule says that it is done; the others go on without it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.ranges import NonNegativeFloat, Share
from components.recursion import State, Tree, mapped, relative_square
from components.refiners.core import Layout, at_least_one_step

Done = Bool[Tensor, "batch"]
Rule = Callable[[Model, Batch, State, State | None], Done]  # model, sequences, this step's state, the last's


def by_probability(model: Model, batch: Batch, state: State, last: State | None, threshold: Share = 0.95) -> Done:
    """Done where every masked token's largest probability exceeds ``threshold``. Costs a readout each step."""
    unsure = model.confidence(state.hidden, batch) <= threshold
    return batch.per_sequence(unsure.float()) == 0


def by_change(model: Model, batch: Batch, state: State, last: State | None, tolerance: NonNegativeFloat = 0.01) -> Done:
    """Done where the states have converged: the step changed them by less than ``tolerance`` of their size (root mean square).

    Padding counts for nothing: how far a batch happens to be padded must not decide.
    """
    if last is None:
        return torch.zeros(len(batch), dtype=torch.bool, device=state.hidden.device)
    change = relative_square((state.hidden - last.hidden).float(), state.hidden.float(), batch.present)
    return change < tolerance**2


def by_learning(model: Model, batch: Batch, state: State, last: State | None, threshold: Share = 0.5) -> Done:
    """Done where the model says so (``RecursiveCore(halting=True)``).

    Raises:
        ValueError: the model has not learned to halt.
    """
    if state.halt is None:
        raise ValueError("halting.by_learning needs a core that learns to halt (recursive_core.RecursiveCore.halting = True)")
    return torch.sigmoid(state.halt.float()) > threshold


class Leaving:
    """Sequences that leave a recursion by one rule; those that are left go on without them.

    Args:
        model: any.
        batch: on its device.
        rule: which of the sequences are done.
        condition, carry, layout: what ``model.begin`` made of the batch.

    Attributes:
        rows: sequences that are left.
        hidden: each sequence's states where it left, or stands.
        taken: after how many steps that was.
    """

    def __init__(self, model: Model, batch: Batch, rule: Rule, condition: Tree, carry: Tree, layout: Layout) -> None:
        self.model, self.batch, self.rule = model, replace(batch, hidden=None, taps=None), rule
        self.condition, self.carry, self.layout = condition, carry, layout
        self.rows = torch.arange(len(batch), device=batch.tokens.device)
        self.taken = torch.zeros_like(self.rows)
        self.hidden: Tensor = torch.empty(0)
        self.last: State | None = None

    def step(self, number: int, state: State | None = None) -> None:
        """Take step ``number`` (from 0) with those who are left, and let go who is done.

        Args:
            number: of the step.
            state: that all sequences have after it, if it is known: nothing is computed as long as all are there.
        """
        if not len(self.rows):
            return
        everyone = len(self.rows) == len(self.taken)
        if state is None or not everyone:
            state = self.model.step(number, self.carry, self.condition, self.layout)
        self.hidden = state.hidden if everyone else self.hidden.index_copy(0, self.rows, state.hidden)
        self.taken[self.rows] = number + 1
        going = (~self.rule(self.model, self.batch, state, self.last)).nonzero()[:, 0]
        self.last, self.carry = state, state.carry
        if len(going) < len(self.rows):
            self._keep(going, state)

    def _keep(self, going: Int[Tensor, "some"], state: State) -> None:
        """Go on with some of those who are left."""

        def of_those(tensor: Tensor) -> Tensor:
            return tensor[going]

        self.rows, self.batch, self.layout = self.rows[going], self.batch.take(going), self.layout.take(going)
        self.condition, self.carry = mapped(of_those, self.condition), mapped(of_those, state.carry)
        halt = None if state.halt is None else state.halt[going]
        self.last = replace(state, hidden=state.hidden[going], carry=self.carry, halt=halt)


@torch.no_grad()
def halted(
    model: Model, batch: Batch, rule: Rule, steps: int | None = None
) -> tuple[Float[Tensor, "batch seq dim"], Int[Tensor, "batch"]]:
    """Each sequence's states where it left the recursion, and after how many steps that was.

    Args:
        model: any.
        batch: on its device.
        rule: which of the sequences are done.
        steps: at most; None = the model's own number.

    Raises:
        ValueError: fewer than one step.
    """
    n_steps = at_least_one_step(model.n_steps if steps is None else steps)
    condition, carry, layout = model.begin(batch)
    leaving = Leaving(model, batch, rule, condition, carry, layout)
    for number in range(n_steps):
        leaving.step(number)
    return leaving.hidden, leaving.taken
