"""What every model says of the same masked batches after each of its recursion steps, and where rules let examples leave.

All rules are followed in the pass that counts: as long as no example has left by one, its states are those of the whole recursion.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.inference.halting import Leaving, Rule
from components.inference.metrics import Counts, counts_of, losses
from components.model import Model
from components.recursion import State
from components.refiners.core import recur
from pipeline.corpora.prepared import Split
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.machine.runtime import Runtime
from pipeline.text.rendering import Right, is_reference

STATISTICS, HALTING = "statistics/", "halting/"  # before the names of what is measured of a refiner, and of rules
TAKEN = "steps"  # how many of them an example took before it left


@dataclass(frozen=True)
class Measured:
    """What a measure says of a model.

    Attributes:
        steps: every example's counts after each recursion step; a backbone has one.
        statistics: what the refiner does in each step: slot norms, gates, confidence, update and overlap, means over all batches,
            each weighted by its tokens. Empty unless they are measured, and for a backbone.
        halting: by rule, counts where examples left the recursion by it and after how many steps that was; empty for a backbone.
    """

    steps: list[Counts]
    statistics: list[dict[str, float]]
    halting: dict[str, tuple[Counts, Tensor]]


def measure(
    models: Compared,
    masked: Iterable[Batch],
    piece: str,
    *,
    rules: Mapping[str, Rule] = MappingProxyType({}),
    statistics: bool = False,
    right: Right = is_reference,
) -> dict[str, Measured]:
    """Count what every model says of the same batches after each of its steps.

    Args:
        models: any.
        masked: the batches.
        piece: under which finished batches are kept.
        rules: by which examples also leave the recursion of models that take several steps.
        statistics: also measure what refiners do.
        right: tells which answers are solved.

    Raises:
        ConfigError: a rule needs what a model has not learned.
    """
    work = partial(_measured, runtime=models.runtime, rules=rules, statistics=statistics, right=right)
    return {name: _joined(by_batch, rules) for name, by_batch in models.on(map(evaluator.trimmed, masked), piece, work).items()}


def _measured(
    model: Model, batch: Batch, *, runtime: Runtime, rules: Mapping[str, Rule], statistics: bool, right: Right
) -> dict[str, Tensor]:
    """Fields of ``Counts``, each (steps, batch); a number by ``statistics/step/name``, and how many tokens they are of; for each
    rule fields of ``Counts`` and steps taken, by ``halting/rule/name``.
    """
    states, counted = [], {}
    with runtime.autocast():
        condition, carry, layout = model.begin(batch)
        several = rules if model.n_steps > 1 else {}
        leaving = {name: Leaving(model, batch, rule, condition, carry, layout) for name, rule in several.items()}
        for number, state in enumerate(recur(model.step, range(model.n_steps), carry, condition, layout, statistics)):
            states.append((state.hidden[batch.masked], state.statistics))
            _leave(leaving.values(), number, state)
        counts = [answer_counts(model.readout(hidden), batch, right) for hidden, _ in states]
        for name, left in leaving.items():
            last = answer_counts(model.readout(left.hidden[batch.masked]), batch, right)
            counted[name] = {**{f.name: getattr(last, f.name) for f in fields(Counts)}, TAKEN: left.taken.double()}
    tokens = batch.tokens.numel() if batch.attention is None else batch.attention.sum()
    return {
        **{f.name: torch.stack([getattr(c, f.name) for c in counts]) for f in fields(Counts)},
        **{f"{STATISTICS}{step}/{key}": value.cpu() for step, (_, each) in enumerate(states) for key, value in each.items()},
        **{f"{HALTING}{name}/{key}": value for name, values in counted.items() for key, value in values.items()},
        "attended": torch.as_tensor(tokens).cpu().double(),
    }


def _leave(leaving: Iterable[Leaving], number: int, state: State) -> None:
    for each in leaving:
        try:
            each.step(number, state)
        except ValueError as error:
            raise ConfigError(f"evaluate.run.halts: {error}") from None


def _joined(by_batch: Sequence[Mapping[str, Tensor]], rules: Iterable[str]) -> Measured:
    """Put together what was measured of all batches."""

    def joined(prefix: str) -> dict[str, Tensor]:
        return {f.name: torch.cat([values[prefix + f.name] for values in by_batch], -1) for f in fields(Counts)}

    steps = range(len(by_batch[0]["nll"]))
    counts = [Counts(**{key: values[step] for key, values in joined("").items()}) for step in steps]
    halting = {}
    for name in (name for name in rules if f"{HALTING}{name}/{TAKEN}" in by_batch[0]):
        taken = torch.cat([values[f"{HALTING}{name}/{TAKEN}"] for values in by_batch])
        halting[name] = Counts(**joined(f"{HALTING}{name}/")), taken
    return Measured(counts, _mean_statistics(by_batch, len(counts)), halting)


def answer_counts(logits: Tensor, batch: Batch, right: Right) -> Counts:
    """Count what the most likely tokens at the masked positions come to; ``right`` tells which of their sequences are solved."""
    nll, best = losses(logits, batch.targets[batch.masked].long())
    counts = counts_of(nll, best, batch.targets, batch.masked)
    if right is is_reference:  # what is counted
        return counts
    filled = batch.targets.masked_scatter(batch.masked, best.to(batch.targets.dtype))
    split = Split(tokens=batch.targets, response=batch.masked, group=torch.arange(len(filled)))
    return replace(counts, solved=right(filled, split).double())


def _mean_statistics(by_batch: Sequence[Mapping[str, Tensor]], steps: int) -> list[dict[str, float]]:
    """Means over batches, weighted by tokens; a batch in which a number says nothing (no token went that way) is left out."""
    sums: dict[str, list[float]] = {}
    for values in by_batch:
        for key in (key for key in values if key.startswith(STATISTICS) and bool(values[key].isfinite())):
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += float(values["attended"]) * float(values[key])
            total[1] += float(values["attended"])
    means = {key: round(total / tokens, 6) for key, (total, tokens) in sums.items()}
    prefixes = [f"{STATISTICS}{step}/" for step in range(steps)]
    by_step = [{key.removeprefix(p): mean for key, mean in means.items() if key.startswith(p)} for p in prefixes]
    return [step for step in by_step if step]


def of_refiner(measured: Measured, group: Tensor, right: Right = is_reference) -> dict[str, Any]:
    """Tell what a model of several steps does beside its counts: statistics of each step; by each rule the metrics
    (``evaluator.metrics_by``) and the mean number of steps, with intervals.
    """
    if len(measured.steps) == 1:
        return {}
    statistics = {"statistics_by_step": measured.statistics} if measured.statistics else {}
    return {**statistics, "halting": {name: _halting(*reading, group, right) for name, reading in measured.halting.items()}}


def _halting(counts: Counts, taken: Tensor, group: Tensor, right: Right) -> dict[str, Any]:
    last = {name: value for name, value in evaluator.summary([counts], group, right).items() if not name.endswith("_by_step")}
    return {**last, "steps": evaluator.mean(taken, torch.ones_like(taken), group)}
