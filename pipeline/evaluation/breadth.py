"""Breadth: what models say when their recursion may begin several times, and a rule chooses among the ends.

One pass of the most restarts over each batch; every smaller number is the first of them.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.inference.breadth import Breadth, Restarts
from components.inference.metrics import Counts
from components.model import Model
from components.refiners.core import recur
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.depths import change_of_states
from pipeline.evaluation.measuring import answer_counts
from pipeline.machine.runtime import Runtime
from pipeline.text.rendering import Right, is_reference


def with_restarts(
    models: Compared, masked: Iterable[Batch], breadth: Breadth, seed: int, group: Tensor, right: Right = is_reference
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Measure every model that recurs and can begin elsewhere, with each number of restarts by each rule.

    Args:
        models: any, with as many steps as in training.
        masked: the same batches for all.
        breadth: the settings.
        seed: of the noise.
        group: of each example, for intervals.
        right: tells which answers are solved.

    Returns:
        By model and rule, in rising order of ``restarts``: ``steps`` of each, ``nll``, ``token_accuracy``, ``exact``, and
        ``minus_one``, paired differences from the one recursion without noise.
    """
    work = partial(_restarted, breadth=breadth, seed=seed, runtime=models.runtime, right=right)
    steps = {name: breadth.steps or model.n_steps for name, model in models.models.items() if _restarts(model)}
    by_model = models.on(map(evaluator.trimmed, masked), "breadth", work)
    return {
        name: {rule: _rows(by_model[name], rule, breadth.restarts, of_each, group, right) for rule in breadth.choices}
        for name, of_each in steps.items()
    }


def _restarts(model: Model) -> bool:
    return model.n_steps > 1 and bool(model.carried_states)


def _restarted(model: Model, batch: Batch, *, breadth: Breadth, seed: int, runtime: Runtime, right: Right) -> dict[str, Tensor]:
    """Fields of ``Counts`` of chosen restarts by ``rule/field``, each (numbers of restarts, batch), and of the first, (1, batch);
    nothing of a model that does not recur.
    """
    if not _restarts(model):
        return {}
    counts, ends = list[Counts](), list[tuple[Tensor, Tensor, Tensor]]()
    with runtime.autocast():
        condition, fresh, layout = model.begin(batch)
        for number in range(breadth.restarts[-1]):
            carry = breadth.start(number, fresh, model, batch, seed)
            states = recur(model.step, range(breadth.steps or model.n_steps), carry, condition, layout, False)
            last, state = deque((state.hidden for state in states), maxlen=2)
            logits = model.readout(state[batch.masked])
            counts.append(answer_counts(logits, batch, right))
            ends.append((change_of_states(state, last, batch), _mean_probability(logits, batch), logits.argmax(-1)))
    restarts = Restarts(batch, *(torch.stack(values) for values in zip(*ends, strict=True)))
    measured = {f.name: torch.stack([getattr(c, f.name) for c in counts]) for f in fields(Counts)}
    among = [restarts.first(number) for number in breadth.restarts]
    chosen = {rule: torch.stack([choose(some) for some in among]) for rule, choose in breadth.choices.items()}
    by_rule = {f"{rule}/{name}": values.gather(0, of) for rule, of in chosen.items() for name, values in measured.items()}
    return {**by_rule, **{name: values[:1] for name, values in measured.items()}}


def _mean_probability(logits: Tensor, batch: Batch) -> Tensor:
    """The mean over each sequence's masked tokens of the largest probability."""
    logits = logits.double()
    return batch.per_sequence((logits.amax(-1) - logits.logsumexp(-1)).exp()) / batch.masked.sum(1)


def _rows(
    by_batch: Sequence[Mapping[str, Tensor]], rule: str, restarts: Sequence[int], steps: int, group: Tensor, right: Right
) -> list[dict[str, Any]]:
    """Metrics with intervals of each number of restarts."""

    def counts(prefix: str, place: int) -> Counts:
        return Counts(**{f.name: torch.cat([values[prefix + f.name][place] for values in by_batch]) for f in fields(Counts)})

    chosen, one = [counts(f"{rule}/", place) for place in range(len(restarts))], counts("", 0)
    summary: dict[str, Any] = evaluator.summary(chosen, group, right)
    return [
        {
            "restarts": number,
            "steps": steps,
            **{name: summary[f"{name}_by_step"][place] for name in evaluator.metrics_by(right)},
            "minus_one": evaluator.compare(chosen[place], one, group, right),
        }
        for place, number in enumerate(restarts)
    ]
