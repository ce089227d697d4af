"""Quality of whole answers against the number of passes: every model decodes the same examples in few passes and in many.

Each sampler of the settings gives each model a curve, whose points are compared with the frozen backbone's and with the plain
sampler's, pair by pair, and the area under it (``components.inference.parallelism``). Finished batches survive a kill
(``pipeline.machine.cached_results``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from components.inference.answers import Answers
from components.inference.metrics import SHARE, differing_groups, percentiles, resampled_ratios
from components.inference.parallelism import PLAIN, Parallelism, accuracy_under_parallelism
from components.inference.proportion import LEAST_EQUAL
from pipeline.corpora.prepared import Prepared, Split
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator
from pipeline.evaluation.answering import texts_of, whole_references
from pipeline.evaluation.compared import Compared
from pipeline.progress import Progress
from pipeline.text.rendering import Right, known_ids, rendering_of

Scores = Mapping[str, Tensor]  # float64 (examples) by name: right answers, right tokens
Score = Callable[[Tensor], Scores]
TOKENS = "token_accuracy"  # of every token of an answer; all other scores are of whole answers


@dataclass(frozen=True)
class DecodedAnswers:
    """Answers that a model decoded in one number of passes.

    Attributes:
        scores: by name.
        evaluations: float64 (examples), runs of the model.
        revised: float64 (examples), how often a token was masked again.
    """

    scores: Scores
    evaluations: Tensor
    revised: Tensor


def curves(prepared: Prepared, models: Compared, parallelism: Parallelism, size: int) -> dict[str, Any]:
    """Decode the examples with every model, sampler and number of passes, and score them.

    Args:
        prepared: the corpus.
        models: one of them is ``frozen``, which the others are compared with.
        parallelism: how.
        size: examples decoded together.

    Returns:
        By model and sampler: ``points`` by number of passes, ``aup`` by score, and their paired differences.

    Raises:
        ConfigError: the backbone is causal, or results are to be read where there is no text.
    """
    vocabulary, known = prepared.vocabulary, known_ids(prepared)
    if vocabulary.causal:
        raise ConfigError("evaluate.run.parallelism fills masks, and a causal backbone has none: set PARALLELISM = None")
    split = evaluator.by_length(prepared.split(parallelism.split).take(slice(0, parallelism.items)))
    score = scorer(prepared, split, parallelism.results)
    decoded: dict[str, dict[tuple[str, int], DecodedAnswers]] = {name: {} for name in models.models}
    with Progress("few passes", len(parallelism.samplers) * len(parallelism.passes), "decode") as bar:
        for sampler_name, sampler in parallelism.samplers.items():
            for passes in parallelism.passes:
                batches = map(evaluator.trimmed, evaluator.batches(split, vocabulary, 1.0, 0, size, "few passes"))
                piece = f"few_passes/{sampler_name}/{passes}"
                by_model = evaluator.fill(models, batches, vocabulary, piece, replace(sampler, steps=passes), known)
                for name, parts in by_model.items():
                    tokens = torch.cat([F.pad(p["tokens"], (0, split.tokens.shape[1] - p["tokens"].shape[1])) for p in parts])
                    evaluations, revised = (torch.cat([p[key] for p in parts]).double() for key in ("evaluations", "revised"))
                    decoded[name][sampler_name, passes] = DecodedAnswers(score(tokens), evaluations, revised)
                bar.advance()
                shares = (f"{name} {float(of[sampler_name, passes].scores[TOKENS].sum()):.0f}" for name, of in decoded.items())
                bar.line(f"{sampler_name}, {passes} passes: right tokens " + ", ".join(shares))
    return _metrics(decoded, split, list(parallelism.samplers), parallelism.passes)


def scorer(prepared: Prepared, split: Split, results: Answers | None) -> Score:
    """Make what scores decoded tokens: answers and tokens that are the reference's, and right results by each pattern.

    Raises:
        ConfigError: results are to be read where there is no text.
    """
    rendering = rendering_of(prepared.vocabulary.rendering)
    judges = evaluator.judges_of(split, prepared.vocabulary)
    encoding, render = rendering.encoding(prepared.folder), rendering.renderer(prepared.vocabulary, prepared.folder)
    if results is None:
        return lambda tokens: _of_tokens(tokens, split, judges)
    if encoding is None:
        raise ConfigError("parallelism.Parallelism.results is for text corpora; set it to None for this one")
    end = encoding.id("end")
    references = zip(texts_of(split.tokens, split, end, render), whole_references(split, end), strict=True)
    expected = [results.expected(*reference) for reference in references]

    def score(tokens: Tensor) -> Scores:
        read = [results.extracted(text) for text in texts_of(tokens, split, end, render)]
        by_pattern = {
            name: torch.tensor([float(e is not None and r[name] == e) for r, e in zip(read, expected, strict=True)]).double()
            for name in results.patterns
        }
        return {**_of_tokens(tokens, split, judges), **by_pattern}

    return score


def _of_tokens(tokens: Tensor, split: Split, judges: Mapping[str, Right]) -> Scores:
    verdicts = {name: judge(tokens, split).double() for name, judge in judges.items()}
    return {**verdicts, TOKENS: ((tokens == split.tokens) & split.response).sum(1).double()}


def _metrics(
    decoded: Mapping[str, Mapping[tuple[str, int], DecodedAnswers]], split: Split, samplers: list[str], passes: list[int]
) -> dict[str, Any]:
    """Points with paired differences from the frozen backbone and the plain sampler, and the areas under the curves."""
    length, ones = split.response.sum(1).double(), torch.ones(len(split), dtype=torch.float64)
    scores = list(decoded["frozen"][PLAIN, passes[0]].scores)
    weights = {score: length if score == TOKENS else ones for score in scores}
    metrics: dict[str, Any] = {name: {sampler: {"points": {}} for sampler in samplers} for name in decoded}
    for name, of_model in decoded.items():
        for (sampler, number), own in of_model.items():
            others = {"minus_frozen": decoded["frozen"][sampler, number]}
            others |= {} if sampler == PLAIN else {"minus_plain": of_model[PLAIN, number]}
            metrics[name][sampler]["points"][str(number)] = {
                **{score: evaluator.mean(own.scores[score], weights[score], split.group, SHARE) for score in scores},
                "tokens_per_pass": evaluator.mean(length, own.evaluations, split.group),
                "revised": evaluator.mean(own.revised, ones, split.group),
                **{
                    key: {s: evaluator.paired(own.scores[s], other.scores[s], weights[s], split.group, SHARE) for s in scores}
                    for key, other in others.items()
                },
            }
    for score in scores:
        for (name, sampler), values in _areas(decoded, split, samplers, passes, score, weights[score]).items():
            for key, value in values.items():
                metrics[name][sampler].setdefault(key, {})[score] = value
    return metrics


def _areas(
    decoded: Mapping[str, Mapping[tuple[str, int], DecodedAnswers]],
    split: Split,
    samplers: list[str],
    passes: list[int],
    score: str,
    weight: Tensor,
) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Area under each curve, and its difference from the frozen backbone's and the plain sampler's, over common resamples.

    The best accuracy of all models and samplers is that of each resample.
    """
    curve_of = [(name, sampler) for name in decoded for sampler in samplers]
    every = [decoded[name][sampler, number] for name, sampler in curve_of for number in passes]
    length = split.response.sum(1).double()
    right, runs = (torch.stack(rows) for rows in ([d.scores[score] for d in every], [d.evaluations for d in every]))
    numerators = torch.cat([right, length.expand_as(runs)])
    denominators = torch.cat([weight.expand_as(right), runs])
    whole = (numerators.sum(1) / denominators.sum(1))[None]
    drawn = resampled_ratios(numerators, denominators, split.group, generator=evaluator.resamples())
    point, areas = (_of_ratios(ratios, len(curve_of), len(passes)) for ratios in (whole, drawn))
    by_curve = right.unflatten(0, (len(curve_of), len(passes)))

    def apart(own: int, other: int) -> dict[str, float]:
        value = _interval(point[0, own] - point[0, other], areas[:, own] - areas[:, other], len(split))
        if differing_groups(by_curve[own] - by_curve[other], split.group) < LEAST_EQUAL:
            value["low"], value["high"] = min(value["low"], 0.0), max(value["high"], 0.0)
        return value

    values = {}
    for own, (name, sampler) in enumerate(curve_of):
        values[name, sampler] = {
            "aup": _interval(point[0, own], areas[:, own], len(split)),
            "aup_minus_frozen": apart(own, curve_of.index(("frozen", sampler))),
        }
        if sampler != PLAIN:
            values[name, sampler]["aup_minus_plain"] = apart(own, curve_of.index((name, PLAIN)))
    return values


def _of_ratios(ratios: Tensor, n_curves: int, points: int) -> Tensor:
    """Areas (resamples, curves) from accuracies and then tokens a pass (resamples, 2 * curves * points)."""
    accuracy, parallelism = ratios.unflatten(1, (2, n_curves, points)).unbind(1)
    best = 100 * accuracy.amax((1, 2))
    return accuracy_under_parallelism(parallelism, 100 * accuracy, best[:, None].expand(-1, n_curves))


def _interval(mean: Tensor, drawn: Tensor, n: int) -> dict[str, float]:
    (low,), (high,) = percentiles(drawn[:, None])
    return {"mean": float(mean), "low": low, "high": high, "n": n}
