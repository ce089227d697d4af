"""Depth: what models say after any number of recursion steps, also far beyond those that they were trained for.

One pass of the deepest number: every other one is read off on the way, and what is not read leaves nothing behind.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.inference.metrics import Counts
from components.model import Model
from components.recursion import relative_square
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import answer_counts
from pipeline.machine.runtime import Runtime
from pipeline.text.rendering import Right, is_reference

CHANGE = "change"  # of the states in a step, beside the fields of ``Counts``


def at_depths(
    models: Compared, masked: Iterable[Batch], depths: Sequence[int], group: Tensor, right: Right = is_reference
) -> dict[str, list[dict[str, Any]]]:
    """Measure every model that recurs after each number of steps, and after the numbers that models were trained with.

    Args:
        models: any, with as many steps as in training.
        masked: the same batches for all.
        depths: numbers of steps.
        group: of each example, for intervals.
        right: tells which answers are solved.

    Returns:
        By model, in rising order of ``steps``: whether it was ``trained`` with so many, ``nll``, ``token_accuracy``, ``exact``,
        ``minus_trained`` (paired differences from the trained number) and, from the second step on, ``change``: by how much the
        last step changed an example's states, |h - h before| / |h|, of which the mean.
    """
    trained = {name: model.n_steps for name, model in models.models.items() if model.n_steps > 1}
    read = sorted({*depths, *trained.values()})
    by_model = models.on(
        map(evaluator.trimmed, masked), "depths", partial(_read_off, read=read, runtime=models.runtime, right=right)
    )
    return {name: _rows(by_model[name], read, own, group, right) for name, own in trained.items()}


def _read_off(model: Model, batch: Batch, *, read: Sequence[int], runtime: Runtime, right: Right) -> dict[str, Tensor]:
    """Fields of ``Counts`` and the change of the states, each (depths, batch); nothing of a model that does not recur."""
    if model.n_steps == 1:
        return {}
    counts, changes, last = list[Counts](), list[Tensor](), None
    with runtime.autocast():
        for number, state in enumerate(model.steps(batch, steps=read[-1]), 1):
            if number in read:
                counts.append(answer_counts(model.readout(state.hidden[batch.masked]), batch, right))
                changes.append(change_of_states(state.hidden, last, batch))
            last = state.hidden
    return {**{f.name: torch.stack([getattr(c, f.name) for c in counts]) for f in fields(Counts)}, CHANGE: torch.stack(changes)}


def change_of_states(hidden: Tensor, last: Tensor | None, batch: Batch) -> Tensor:
    """Compute |h - last| / |h| of each sequence without its padding; 0 where there is nothing to compare with."""
    if last is None:
        return torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    return relative_square((hidden - last).double(), hidden.double(), batch.present).sqrt()


def _rows(
    by_batch: Sequence[Mapping[str, Tensor]], read: Sequence[int], trained: int, group: Tensor, right: Right
) -> list[dict[str, Any]]:
    """Metrics with intervals after each number of steps."""
    joined = {key: torch.cat([values[key] for values in by_batch], -1) for key in by_batch[0]}
    counts = [Counts(**{f.name: joined[f.name][place] for f in fields(Counts)}) for place in range(len(read))]
    summary: dict[str, Any] = evaluator.summary(counts, group, right)
    own = counts[read.index(trained)]
    rows = list[dict[str, Any]]()
    for place, steps in enumerate(read):
        change = joined[CHANGE][place]
        rows.append({
            "steps": steps,
            "trained": steps == trained,
            **{name: summary[f"{name}_by_step"][place] for name in evaluator.metrics_by(right)},
            "minus_trained": evaluator.compare(counts[place], own, group, right),
            **({"change": evaluator.mean(change, torch.ones_like(change), group)} if steps > 1 else {}),
        })  # fmt: skip
    return rows
