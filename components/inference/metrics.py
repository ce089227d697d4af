"""Metrics with 95 % intervals. Per-example sums come in, grouped by what is independent; intervals resample whole groups.

Puzzles that share a solution grid are not independent, so their grid is the unit that is resampled (cluster bootstrap).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Counts:
    """Per-example sums of one decode: everything the metrics are made of.

    Attributes:
        nll: summed -log p of the supervised tokens, in nats.
        correct: supervised tokens whose most likely id is right.
        tokens: supervised tokens.
        exact: 1 where all of them are right.
    """

    nll: Float[Tensor, "batch"]
    correct: Float[Tensor, "batch"]
    tokens: Float[Tensor, "batch"]
    exact: Float[Tensor, "batch"]


def count(logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, "batch seq"], masked: Bool[Tensor, "batch seq"]) -> Counts:
    """Counts from the logits of the masked positions (in row-major order of ``masked``)."""
    expected = targets[masked].long()
    nll = F.cross_entropy(logits.float(), expected, reduction="none").double()
    correct = (logits.argmax(-1) == expected).double()
    row = masked.nonzero()[:, 0]
    sums = [torch.zeros(len(masked), dtype=torch.float64, device=nll.device).index_add(0, row, x) for x in (nll, correct)]
    tokens = masked.sum(1).double()
    return Counts(nll=sums[0], correct=sums[1], tokens=tokens, exact=(sums[1] == tokens).double())


def interval(
    numerator: Float[Tensor, "examples"],
    denominator: Float[Tensor, "examples"],
    group: Int[Tensor, "examples"],
    *,
    generator: torch.Generator,
    resamples: int = 2000,
) -> dict[str, float]:
    """sum(numerator) / sum(denominator) and its 95 % interval by bootstrap over groups.

    Where every resample gives the same number the bootstrap says nothing; a proportion of 0 or 1 then gets the rule of three
    (3 / groups), taking each group as one observation.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), percentile interval; Hanley and Lippman-Hand (1983).

    Args:
        numerator: per example.
        denominator: per example; ones for a mean.
        group: examples with the same number are resampled together.
        generator: the only source of randomness; the same seed gives common resamples, so differences can be paired.
        resamples: bootstrap samples.

    Returns:
        {"mean", "low", "high", "n"}: n is the number of examples.
    """
    return intervals(numerator[None], denominator[None], group, generator=generator, resamples=resamples)[0]


def difference(
    a: Float[Tensor, "examples"],
    b: Float[Tensor, "examples"],
    denominator: Float[Tensor, "examples"],
    group: Int[Tensor, "examples"],
    *,
    generator: torch.Generator,
    resamples: int = 2000,
) -> dict[str, float]:
    """Paired difference of two models on the same examples: sum(a - b) / sum(denominator) with its 95 % interval."""
    return _bootstrap((a - b)[None], denominator[None], group, generator, resamples)[0]


def intervals(
    numerators: Float[Tensor, "kinds examples"],
    denominators: Float[Tensor, "kinds examples"],
    group: Int[Tensor, "examples"],
    *,
    generator: torch.Generator,
    resamples: int = 2000,
) -> list[dict[str, float]]:
    """``interval`` of several ratios on the same examples, from common resamples: far cheaper than one by one."""
    estimates = _bootstrap(numerators, denominators, group, generator, resamples)
    margin = 3 / len(group.unique())
    for value in estimates:
        if value["low"] == value["high"] and value["mean"] in (0.0, 1.0):
            value["low"], value["high"] = max(0.0, value["mean"] - margin), min(1.0, value["mean"] + margin)
    return estimates


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean of independent runs and its 95 % interval (Student's t); a single run has no interval.

    >>> {name: round(value, 4) for name, value in over_seeds([0.9, 1.0]).items()}
    {'mean': 0.95, 'low': 0.3147, 'high': 1.5853, 'n': 2}
    >>> over_seeds([0.9])
    {'mean': 0.9, 'n': 1}
    """
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return {"mean": mean, "n": 1}
    half = student_t(0.95, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def student_t(probability: float, degrees: int) -> float:
    """The t below which |T| stays with this probability, T of Student's distribution, by bisection of its closed form.

    With t = sqrt(degrees) tan(angle): P = sin(angle) (1 + cos^2/2 + (1 3)/(2 4) cos^4 + ...) for even degrees, and
    (2/pi) (angle + sin(angle) (cos + 2/3 cos^3 + (2 4)/(3 5) cos^5 + ...)) for odd ones, up to cos^(degrees - 2).
    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4.

    >>> round(student_t(0.95, 9), 3)
    2.262
    """

    def inside(angle: float) -> float:
        odd = degrees % 2
        term, total = math.cos(angle) if odd else 1.0, 0.0
        for power in range(odd, degrees - 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < probability else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _bootstrap(
    numerators: Float[Tensor, "kinds examples"],
    denominators: Float[Tensor, "kinds examples"],
    group: Int[Tensor, "examples"],
    generator: torch.Generator,
    resamples: int,
) -> list[dict[str, float]]:
    """Ratios of sums and their percentile intervals over resampled groups."""
    kinds = len(numerators)
    sums = _group_sums(torch.cat([numerators, denominators]).double(), group)
    groups = sums.shape[1]
    picks = torch.randint(groups, (resamples, groups), generator=generator)
    times = torch.zeros(resamples, groups, dtype=torch.float64).scatter_add(1, picks, torch.ones(picks.shape, dtype=torch.float64))
    drawn = times @ sums.T
    ratios = drawn[:, :kinds] / drawn[:, kinds:]
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    means = (sums[:kinds].sum(1) / sums[kinds:].sum(1)).tolist()
    n = numerators.shape[1]
    return [{"mean": m, "low": lo, "high": hi, "n": n} for m, lo, hi in zip(means, low, high, strict=True)]


def _group_sums(values: Float[Tensor, "kinds examples"], group: Int[Tensor, "examples"]) -> Float[Tensor, "kinds groups"]:
    index = group.unique(return_inverse=True)[1]
    return torch.zeros(len(values), int(index.max()) + 1, dtype=torch.float64).index_add(1, index, values)
