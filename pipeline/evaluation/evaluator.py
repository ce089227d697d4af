"""Evaluation: every model on the same test examples under the same masks, at every recursion step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from components import noise
from components.batch import Batch
from components.inference import halting, sampling
from components.inference.halting import Rule
from components.inference.metrics import SHARE, Bounds, Counts, count, difference, interval, intervals
from components.model import Model
from components.objective import masking
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.batches import assemble
from pipeline.errors import ConfigError
from pipeline.inference.predictor import predictor
from pipeline.machine.cached_results import cached_result
from pipeline.machine.distributed import gathered, rank, world
from pipeline.machine.runtime import Runtime
from pipeline.progress import Progress, watched
from pipeline.text.rendering import Right, is_reference, rendering_of

T = TypeVar("T")
EVALUATION = 1 << 34  # stream of the evaluation masks: common random numbers across models
METRICS: dict[str, Bounds] = {"nll": None, "token_accuracy": SHARE, "exact": SHARE}
STATISTICS = "statistics/"  # before the names of what is measured of a refiner
BOOTSTRAP_SEED = 0  # common resamples across models, so that their differences are paired


def resamples() -> torch.Generator:
    """Return the bootstrap's generator: the same for every model, so that differences are paired."""
    return torch.Generator().manual_seed(BOOTSTRAP_SEED)


def batches(split: Split, vocabulary: Vocabulary, ratio: float, seed: int, size: int, label: str = "") -> Iterator[Batch]:
    """The split with ``ratio`` of every answer masked; masks are nested over ratios and the same for every model.

    ``label``: of the progress that is shown; "" = none.
    """
    starts = range(0, len(split), size)
    for first in watched(starts, label, len(starts), "batch") if label else starts:
        rows = split.take(slice(first, first + size))
        assert rows.uid is not None
        numbers = noise.uniform(seed, EVALUATION, rows.uid, vocabulary.sequence + 1)
        masked, weights = masking.fixed_ratio(rows.response, numbers, ratio)
        yield assemble(rows.tokens, masked, weights, rows.valid, vocabulary)


def by_length(split: Split) -> Split:
    """The split with its shortest examples first: batches then hold little padding."""
    return split if split.valid is None else split.take(split.valid.sum(1).argsort(stable=True))


def trimmed(batch: Batch) -> Batch:
    """The batch without the positions that are padding in every row."""
    if batch.attention is None:
        return batch
    return batch.cut(int(batch.attention.any(0).nonzero().max()) + 1)


def counts_by_step(model: Model, masked: Iterator[Batch], runtime: Runtime, name: str) -> list[Counts]:
    """Count every example after each recursion step (a backbone has one); ``name``: under which finished batches are kept."""
    return measure_by_step(model, masked, runtime, name)[0]


@torch.no_grad()
def measure_by_step(
    model: Model,
    masked: Iterator[Batch],
    runtime: Runtime,
    name: str,
    *,
    statistics: bool = False,
    right: Right = is_reference,
) -> tuple[list[Counts], list[dict[str, float]]]:
    """Count every example after each recursion step, and measure what the refiner does there.

    Args:
        model: any; a backbone has one step.
        masked: the batches.
        runtime: where it computes.
        name: under which finished batches are kept.
        statistics: also measure slot norms, gates, confidence, update and overlap: means over all batches, each weighted by its
            tokens.
        right: tells which answers are exact.

    Returns:
        Counts and statistics, each by step; a backbone has none of the latter.
    """
    mine: list[dict[str, Tensor]] = []  # of every batch that is this process's
    for number, batch in islice(enumerate(masked), rank(), None, world()):
        mine.append(cached_result(f"{name}/{number}", partial(_measured, model, batch, runtime, statistics, right)))
    by_batch = interleaved(gathered(mine))
    joined = {f.name: torch.cat([values[f.name] for values in by_batch], -1) for f in fields(Counts)}
    counts = [Counts(**{key: values[step] for key, values in joined.items()}) for step in range(len(joined["nll"]))]
    return counts, _mean_statistics(by_batch, len(counts))


def _measured(model: Model, batch: Batch, runtime: Runtime, statistics: bool, right: Right) -> dict[str, Tensor]:
    """Fields of ``Counts``, each (steps, batch); a number by ``statistics/step/name``, and how many tokens they are of."""
    batch = trimmed(batch).to(runtime.device)
    with runtime.autocast():
        states = [(state.hidden[batch.masked], state.statistics) for state in model.steps(batch, statistics=statistics)]
        counts = [_counted(model.readout(hidden), batch, right) for hidden, _ in states]
    tokens = batch.tokens.numel() if batch.attention is None else batch.attention.sum()
    return {
        **{f.name: torch.stack([getattr(c, f.name) for c in counts]) for f in fields(Counts)},
        **{f"{STATISTICS}{step}/{key}": value.cpu() for step, (_, each) in enumerate(states) for key, value in each.items()},
        "attended": torch.as_tensor(tokens).cpu().double(),
    }


def _counted(logits: Tensor, batch: Batch, right: Right) -> Counts:
    """Count what the most likely tokens at the masked positions come to; ``right`` tells which of their sequences are exact."""
    counts = count(logits, batch.targets, batch.masked)
    if right is is_reference:  # what ``count`` compares with
        return counts
    filled = batch.targets.masked_scatter(batch.masked, logits.argmax(-1).to(batch.targets.dtype))
    split = Split(tokens=batch.targets, response=batch.masked, group=torch.arange(len(filled)))
    return replace(counts, exact=right(filled, split).double())


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


@torch.no_grad()
def halted(
    model: Model, masked: Iterator[Batch], rule: Rule, runtime: Runtime, right: Right = is_reference
) -> tuple[Counts, Tensor]:
    """Counts of every example where it left the recursion by ``rule``, and after how many steps that was.

    Raises:
        ConfigError: the rule needs what the model has not learned.
    """
    mine: list[tuple[Counts, Tensor]] = []
    for batch in islice(masked, rank(), None, world()):
        batch = trimmed(batch).to(runtime.device)
        with runtime.autocast():
            try:
                hidden, steps = halting.halted(model, batch, rule)
            except ValueError as error:
                raise ConfigError(f"evaluate.run.halts: {error}") from None
            counts = _counted(model.readout(hidden[batch.masked]), batch, right)
        mine.append((_on_host(counts), steps.cpu().double()))
    by_batch = interleaved(gathered(mine))
    return _joined([counts for counts, _ in by_batch]), torch.cat([steps for _, steps in by_batch])


def halting_summary(counts: Counts, steps: Tensor, group: Tensor) -> dict[str, dict[str, float]]:
    """nll, token_accuracy, exact, and the mean number of recursion steps, with intervals."""
    last = {name: value for name, value in summary([counts], group).items() if not name.endswith("_by_step")}
    return {**last, "steps": mean(steps, torch.ones_like(steps), group)}  # type: ignore[dict-item]


def _on_host(counts: Counts) -> Counts:
    return Counts(**{f.name: getattr(counts, f.name).cpu() for f in fields(Counts)})


def _joined(parts: Sequence[Counts]) -> Counts:
    """Counts of the examples of all parts."""
    return Counts(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Counts)})


def interleaved(shares: list[list[T]]) -> list[T]:
    """What processes made of every ``world``-th batch, in the order of the batches.

    >>> interleaved([[0, 2, 4], [1, 3]])
    [0, 1, 2, 3, 4]
    """
    return [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]


def summary(steps: list[Counts], group: Tensor) -> dict[str, object]:
    """nll (nats per masked token), token_accuracy and exact of the last step with intervals; of every step beside."""
    numerators = torch.stack([x for c in steps for x in (c.nll, c.correct, c.exact)])
    denominators = torch.stack([x for c in steps for x in (c.tokens, c.tokens, torch.ones_like(c.tokens))])
    ratios = intervals(numerators, denominators, group, generator=resamples(), bounds=[*METRICS.values()] * len(steps))
    by_step = {name: ratios[i :: len(METRICS)] for i, name in enumerate(METRICS)}
    last = {name: values[-1] for name, values in by_step.items()}
    return {**last, **{f"{name}_by_step": values for name, values in by_step.items()}}


def compare(a: Counts, b: Counts, group: Tensor) -> dict[str, dict[str, float]]:
    """Paired differences a - b of nll, token_accuracy and exact."""
    return {
        "nll": paired(a.nll, b.nll, a.tokens, group),
        "token_accuracy": paired(a.correct, b.correct, a.tokens, group, SHARE),
        "exact": paired(a.exact, b.exact, torch.ones_like(a.tokens), group, SHARE),
    }


def mean(numerator: Tensor, denominator: Tensor, group: Tensor, bounds: Bounds = None) -> dict[str, float]:
    """A ratio of sums over examples with its interval."""
    return interval(numerator, denominator, group, generator=resamples(), bounds=bounds)


def paired(a: Tensor, b: Tensor, denominator: Tensor, group: Tensor, bounds: Bounds = None) -> dict[str, float]:
    """Difference of two models' ratios on the same examples with its interval; ``bounds``: of the ratios."""
    return difference(a, b, denominator, group, generator=resamples(), bounds=bounds)


@torch.no_grad()
def decode(
    model: Model,
    split: Split,
    vocabulary: Vocabulary,
    runtime: Runtime,
    *,
    steps: int,
    blocks: int,
    size: int,
    known: Tensor | None = None,
) -> tuple[Tensor, dict[str, dict[str, float]]]:
    """Decode whole answers in ``steps`` passes; returns the tokens and exact and token_accuracy with intervals.

    ``known``: which ids have a token; None = all.

    Raises:
        ConfigError: the backbone is causal; there are no masks to fill.
    """
    if vocabulary.causal:
        raise ConfigError("evaluate.run.decodes fills masks, and a causal backbone has none: set DECODES = {}")
    mine = []
    for batch in islice(batches(split, vocabulary, 1.0, 0, size, "evaluate decodes"), rank(), None, world()):
        predict = predictor(model, batch.to(runtime.device), vocabulary, runtime)
        masked = batch.tokens.to(runtime.device)
        with Progress("passes", steps, "pass") as bar:
            last = sampling.low_confidence_remasking(bar.counting(predict), masked, vocabulary.mask_id, steps, blocks, known)
        mine.append(last.tokens.cpu())
    tokens = torch.cat(interleaved(gathered(mine)))
    right = ((tokens == split.tokens) & split.response).sum(1).double()
    supervised = split.response.sum(1).double()
    exact = rendering_of(vocabulary.rendering).right(tokens, split).double()
    return tokens, {
        "exact": mean(exact, torch.ones_like(exact), split.group, SHARE),
        "token_accuracy": mean(right, supervised, split.group, SHARE),
    }


@torch.no_grad()
def trace(model: Model, split: Split, vocabulary: Vocabulary, runtime: Runtime) -> list[list[dict[str, list[float]]]]:
    """For each example and recursion step: the predicted id and its probability at every position, all answers masked."""
    batch = next(batches(split, vocabulary, 1.0, 0, len(split))).to(runtime.device)
    shown: list[list[dict[str, list[float]]]] = [[] for _ in range(len(split))]
    with runtime.autocast():
        by_step = [model.readout(state.hidden).float() for state in model.steps(batch)]
    for logits in by_step:
        if not vocabulary.causal:
            logits[..., vocabulary.mask_id] = -torch.inf
        probability, best = logits.softmax(-1).max(-1)
        for row, of_ids in enumerate(probability):
            ids = torch.where(batch.masked[row], best[row], batch.targets[row])
            if vocabulary.causal:  # what is predicted at a place is the next one's
                ids, of_ids = ids.roll(1), of_ids.roll(1)
            shown[row].append({"ids": ids.tolist(), "probability": [round(p, 4) for p in of_ids.tolist()]})
    return shown
