"""Halting: at inference a sequence leaves the recursion as soon as a rule says that it is done; the others go on without it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.ranges import NonNegativeFloat, Share
from components.recursion import State, mapped
from components.refiners.core import at_least_one_step

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
    attention = torch.ones_like(batch.masked) if batch.attention is None else batch.attention
    change, size = ((x.float().square().sum(-1) * attention).sum(1) for x in (state.hidden - last.hidden, state.hidden))
    return change < tolerance**2 * size


def by_learning(model: Model, batch: Batch, state: State, last: State | None, threshold: Share = 0.5) -> Done:
    """Done where the model says so (``RecursiveCore(halting=True)``).

    Raises:
        ValueError: the model has not learned to halt.
    """
    if state.halt is None:
        raise ValueError("halting.by_learning needs a core that learns to halt (recursive_core.RecursiveCore.halting = True)")
    return torch.sigmoid(state.halt.float()) > threshold


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
    rows = torch.arange(len(batch), device=batch.tokens.device)
    taken = torch.zeros_like(rows)
    result, last = torch.empty(0), None
    for number in range(n_steps):
        state = model.step(number, carry, condition, layout)
        result = state.hidden.clone() if number == 0 else result.index_copy(0, rows, state.hidden)
        taken[rows] = number + 1
        going = (~rule(model, batch, state, last)).nonzero()[:, 0]
        if not len(going):
            break

        def of_those(tensor: Tensor, going: Tensor = going) -> Tensor:
            return tensor[going]

        rows, batch, layout = rows[going], batch.take(going), layout.take(going)
        condition, carry = mapped(of_those, condition), mapped(of_those, state.carry)
        halt = None if state.halt is None else state.halt[going]
        last = replace(state, hidden=state.hidden[going], carry=carry, halt=halt)
    return result, taken
