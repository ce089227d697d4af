"""Evaluation: the same test examples under the same masks for every model; decoded answers, and means with paired intervals."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, repeat

import torch
from torch import Tensor

from components import noise
from components.batch import Batch
from components.inference import sampling
from components.inference.metrics import SHARE, Bounds, Counts, difference, interval, intervals
from components.inference.pass_memory import PassMemory
from components.model import Model
from components.objective import masking
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.batches import assemble
from pipeline.errors import ConfigError
from pipeline.evaluation.compared import Compared
from pipeline.inference.predictor import predictor
from pipeline.machine.runtime import Runtime
from pipeline.progress import Progress, watched
from pipeline.text.rendering import Right, is_reference, right_of

EVALUATION = 1 << 34  # stream of the evaluation masks: common random numbers across models
METRICS: dict[str, Bounds] = {"nll": None, "token_accuracy": SHARE, "exact": SHARE}
SOLVED = "solved"  # beside them, where some examples allow several answers: the share with any of those
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


def metrics_by(right: Right) -> dict[str, Bounds]:
    """Name the metrics of a split: those of all, and ``solved`` where ``right`` allows other answers than the references."""
    return METRICS if right is is_reference else {**METRICS, SOLVED: SHARE}


def summary(steps: list[Counts], group: Tensor, right: Right = is_reference) -> dict[str, object]:
    """nll (nats per masked token), token_accuracy, exact and, by ``metrics_by``, solved of the last step with intervals; of every
    step beside.
    """
    metrics = metrics_by(right)
    ratios = [_ratio(counts, name) for counts in steps for name in metrics]
    numerators, denominators = map(torch.stack, zip(*ratios, strict=True))
    values = intervals(numerators, denominators, group, generator=resamples(), bounds=[*metrics.values()] * len(steps))
    by_step = {name: values[i :: len(metrics)] for i, name in enumerate(metrics)}
    last = {name: of_steps[-1] for name, of_steps in by_step.items()}
    return {**last, **{f"{name}_by_step": of_steps for name, of_steps in by_step.items()}}


def compare(a: Counts, b: Counts, group: Tensor, right: Right = is_reference) -> dict[str, dict[str, float]]:
    """Paired differences a - b of nll, token_accuracy, exact and, by ``metrics_by``, solved."""
    pairs = {name: (_ratio(a, name), _ratio(b, name)[0], bounds) for name, bounds in metrics_by(right).items()}
    return {name: paired(own, other, weight, group, bounds) for name, ((own, weight), other, bounds) in pairs.items()}


def _ratio(counts: Counts, metric: str) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of a metric, per example."""
    ones = torch.ones_like(counts.tokens)
    return {
        "nll": (counts.nll, counts.tokens), "token_accuracy": (counts.correct, counts.tokens),
        "exact": (counts.exact, ones), SOLVED: (counts.solved, ones),
    }[metric]  # fmt: skip


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
    """Decode whole answers in ``steps`` passes; returns each model's tokens, and exact, token_accuracy and, where the split has
    examples of several answers, solved with intervals.

    ``known``: which ids have a token; None = all.

    Raises:
        ConfigError: the backbone is causal; there are no masks to fill.
    """
    if vocabulary.causal:
        raise ConfigError("evaluate.run.decodes fills masks, and a causal backbone has none: set DECODES = {}")
    masked = batches(split, vocabulary, 1.0, 0, size, "evaluate decodes")
    supervised = split.response.sum(1).double()
    decoded, judges = {}, judges_of(split, vocabulary)
    for name, by_batch in fill(models, masked, vocabulary, piece, sampling.Sampler(steps, blocks), known).items():
        tokens = torch.cat([values["tokens"] for values in by_batch])
        right = ((tokens == split.tokens) & split.response).sum(1).double()
        verdicts = {key: judge(tokens, split).double() for key, judge in judges.items()}
        decoded[name] = (
            tokens,
            {
                **{key: mean(each, torch.ones_like(each), split.group, SHARE) for key, each in verdicts.items()},
                "token_accuracy": mean(right, supervised, split.group, SHARE),
            },
        )
    return decoded


def judges_of(split: Split, vocabulary: Vocabulary) -> dict[str, Right]:
    """Name what judges whole answers: exact by the reference and, where the split allows other answers too, solved by any."""
    right = right_of(split, vocabulary)
    return {"exact": is_reference} if right is is_reference else {"exact": is_reference, SOLVED: right}


def fill(
    models: Compared, masked: Iterable[Batch], vocabulary: Vocabulary, piece: str, sampler: sampling.Sampler, known: Tensor | None
) -> dict[str, list[dict[str, Tensor]]]:
    """Fill in what is masked of every batch with each model.

    Args:
        models: of masked diffusion.
        masked: batches whose answers are all masked.
        vocabulary: their token ids.
        piece: name under which finished batches are kept.
        sampler: with a number of steps, and of no temperature.
        known: which ids have a token; None = all.

    Returns:
        By model, of each batch ``tokens``, and of its rows ``evaluations`` and ``revised``, how often a token was masked again.
    """
    work = partial(_filled, whole=models.whole, vocabulary=vocabulary, runtime=models.runtime, sampler=sampler, known=known)
    return models.on(masked, piece, work)


def _filled(
    model: Model,
    batch: Batch,
    *,
    whole: Callable[[Model], Model],
    vocabulary: Vocabulary,
    runtime: Runtime,
    sampler: sampling.Sampler,
    known: Tensor | None,
) -> dict[str, Tensor]:
    """What the models share, they share in the first pass alone, before which nothing is decoded."""
    memory = PassMemory()
    ask = partial(predictor, vocabulary=vocabulary, runtime=runtime, memory=memory)
    later = ask(whole(model), replace(batch, hidden=None))
    single = sampler.guidance  # whose passes begin with other tokens
    passes = chain([later if single else ask(model, batch)], repeat(later))
    tokens, evaluations = batch.tokens, torch.zeros_like(batch.tokens[:, 0])
    revised = evaluations
    with Progress("passes", sampler.steps or 1, "pass") as bar:
        predict = bar.counting(lambda tokens, queried: next(passes)(tokens, queried))
        for made in sampler.passes(predict, tokens, vocabulary.mask_id, known=known):
            revised = revised + ((made.tokens == vocabulary.mask_id) & (tokens != vocabulary.mask_id)).sum(1)
            tokens, evaluations = made.tokens, made.evaluations
    return {"tokens": tokens, "evaluations": evaluations, "revised": revised}


def trace(
    models: Compared, split: Split, vocabulary: Vocabulary, ratio: float = 1.0, seed: int = 0
) -> tuple[dict[str, list[list[dict[str, list[float]]]]], Tensor]:
    """Trace every recursion step of every model on examples of which a share of each answer is masked.

    Args:
        models: any.
        split: the examples.
        vocabulary: their token ids.
        ratio: share of every answer that is masked, all in one batch.
        seed: of the masks.

    Returns:
        By model, for each example and step, the predicted id and its probability at every position; and what is masked.
    """
    batch = next(batches(split, vocabulary, ratio, seed, len(split)))
    traces = models.on_one(batch, f"trace/{ratio}", partial(_traced, vocabulary=vocabulary, runtime=models.runtime))
    by_model = {name: [_steps(*row) for row in zip(t["ids"], t["probability"], strict=True)] for name, t in traces.items()}
    return by_model, batch.masked


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
