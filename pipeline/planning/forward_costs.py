"""Operations of an example without gradient, reckoned on shapes: by which of the recursion steps are read out, and where."""

from collections.abc import Sequence
from functools import partial

import torch

from components.batch import Batch
from components.model import Model
from components.objective.losses import masked_cross_entropy
from pipeline.training import flops


@torch.no_grad()
def every_step_read(model: Model, batch: Batch, times: int = 1) -> int:
    """Count all steps and what each says of masked positions, so many times."""

    def work() -> None:
        for state in model.steps(batch):
            masked_cross_entropy(model, state.hidden, batch, compute=True)

    return times * flops.count(work) // len(batch) if times else 0


@torch.no_grad()
def last_step_read(model: Model, batch: Batch, times: int = 1) -> int:
    """Count one pass with the last step's logits of every position, so many times."""
    return times * flops.count(lambda: model.readout(model.states(batch))) // len(batch) if times else 0


@torch.no_grad()
def depths_read(model: Model, batch: Batch, depths: Sequence[int], times: int = 1) -> int:
    """Count all steps of the deepest number and what masked positions say after each of ``depths``, so many times; nothing of a
    model that does not recur. Every step beyond the model's own takes as much as the first of them.
    """
    if model.n_steps == 1:
        return 0

    def work(steps: int, read: bool) -> None:
        *_, last = model.steps(batch, steps=steps)
        if read:
            masked_cross_entropy(model, last.hidden, batch, compute=True)

    own = min(model.n_steps, max(depths))
    all_of_own, one_more, with_reading = (flops.count(partial(work, *how)) for how in ((own, False), (own + 1, False), (own, True)))
    stepping = all_of_own + (max(depths) - own) * (one_more - all_of_own)
    return times * (stepping + len(set(depths)) * (with_reading - all_of_own)) // len(batch)


@torch.no_grad()
def restarts_read(model: Model, batch: Batch, steps: int, restarts: int, times: int = 1) -> int:
    """Count so many recursions of ``steps`` steps over what is computed once, each read out; nothing of a model that has none."""
    if model.n_steps == 1 or not model.carried_states:
        return 0
    once = flops.count(partial(model.begin, batch)) // len(batch)
    return times * (once + restarts * (depths_read(model, batch, [steps]) - once))
