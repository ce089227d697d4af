"""Evaluation: the same test examples under the same masks for every model; decoded answers, and means with paired intervals."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, repeat

import torch
from torch import Tensor

from components import noise
from components.batch import Batch
from components.inference import sampling
from components.inference.metrics import SHARE, Bounds, Counts, difference, interval, intervals
from components.model import Model
from components.objective import masking
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.batches import assemble
from pipeline.errors import ConfigError
from pipeline.evaluation.compared import Compared
from pipeline.inference.predictor import predictor
from pipeline.machine.runtime import Runtime
from pipeline.progress import Progress, watched
from pipeline.text.rendering import rendering_of

EVALUATION = 1 << 34  # stream of the evaluation masks: common random numbers across models
METRICS: dict[str, Bounds] = {"nll": None, "token_accuracy": SHARE, "exact": SHARE}
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


def decode(
    models: Compared,
    split: Split,
    vocabulary: Vocabulary,
    piece: str,
    *,
    steps: int,
    blocks: int,
    size: int,
    known: Tensor | None = None,
) -> dict[str, tuple[Tensor, dict[str, dict[str, float]]]]:
    """Decode whole answers in ``steps`` passes; returns each model's tokens, and exact and token_accuracy with intervals.

    ``known``: which ids have a token; None = all.

    Raises:
        ConfigError: the backbone is causal; there are no masks to fill.
    """
    if vocabulary.causal:
        raise ConfigError("evaluate.run.decodes fills masks, and a causal backbone has none: set DECODES = {}")
    masked = batches(split, vocabulary, 1.0, 0, size, "evaluate decodes")
    work = partial(
        _decoded, whole=models.whole, vocabulary=vocabulary, runtime=models.runtime, steps=steps, blocks=blocks, known=known
    )
    supervised = split.response.sum(1).double()
    decoded = {}
    for name, by_batch in models.on(masked, piece, work).items():
        tokens = torch.cat([values["tokens"] for values in by_batch])
        right = ((tokens == split.tokens) & split.response).sum(1).double()
        exact = rendering_of(vocabulary.rendering).right(tokens, split).double()
        decoded[name] = (
            tokens,
            {
                "exact": mean(exact, torch.ones_like(exact), split.group, SHARE),
                "token_accuracy": mean(right, supervised, split.group, SHARE),
            },
        )
    return decoded


def _decoded(
    model: Model,
    batch: Batch,
    *,
    whole: Callable[[Model], Model],
    vocabulary: Vocabulary,
    runtime: Runtime,
    steps: int,
    blocks: int,
    known: Tensor | None,
) -> dict[str, Tensor]:
    """A batch's tokens; what the models share, they share in the first pass alone, before which nothing is decoded."""
    later = predictor(whole(model), replace(batch, hidden=None), vocabulary, runtime)
    passes = chain([predictor(model, batch, vocabulary, runtime)], repeat(later))
    with Progress("passes", steps, "pass") as bar:
        predict = bar.counting(lambda tokens: next(passes)(tokens))
        return {"tokens": sampling.low_confidence_remasking(predict, batch.tokens, vocabulary.mask_id, steps, blocks, known).tokens}


def trace(models: Compared, split: Split, vocabulary: Vocabulary) -> dict[str, list[list[dict[str, list[float]]]]]:
    """By model, for each example and recursion step: the predicted id and its probability at every position, all answers masked."""
    batch = next(batches(split, vocabulary, 1.0, 0, len(split)))
    traces = models.on_one(batch, "trace", partial(_traced, vocabulary=vocabulary, runtime=models.runtime))
    return {name: [_steps(*row) for row in zip(t["ids"], t["probability"], strict=True)] for name, t in traces.items()}


def _traced(model: Model, batch: Batch, *, vocabulary: Vocabulary, runtime: Runtime) -> dict[str, Tensor]:
    """Ids and probabilities, each (batch, steps, seq)."""
    ids, probabilities = [], []
    with runtime.autocast():
        by_step = [model.readout(state.hidden).float() for state in model.steps(batch)]
    for logits in by_step:
        if not vocabulary.causal:
            logits[..., vocabulary.mask_id] = -torch.inf
        probability, best = logits.softmax(-1).max(-1)
        shown = torch.where(batch.masked, best, batch.targets)
        behind = int(vocabulary.causal)  # what is predicted at a place is the next one's
        ids.append(shown.roll(behind, 1))
        probabilities.append(probability.roll(behind, 1))
    return {"ids": torch.stack(ids, 1), "probability": torch.stack(probabilities, 1)}


def _steps(ids: Tensor, probability: Tensor) -> list[dict[str, list[float]]]:
    by_step = zip(ids.tolist(), probability.tolist(), strict=True)
    return [{"ids": best, "probability": [round(p, 4) for p in sure]} for best, sure in by_step]
