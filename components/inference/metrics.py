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

Bounds = tuple[float, float] | None  # lowest and highest value of a metric; None = it has none
SHARE: Bounds = (0.0, 1.0)  # of a share, such as accuracy
PART = 1 << 22  # numbers of groups that the bootstrap draws at once: about 100 MB
ROUNDING = 1e-12  # width of a bounded metric's interval that rounding alone can give


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
    bounds: Bounds = None,
) -> dict[str, float]:
    """Estimate sum(numerator) / sum(denominator) and its 95 % interval by bootstrap over groups.

    Where all groups agree (or there is one) the resamples do too, and the bootstrap says nothing. Then the rule of three speaks,
    each group as one observation: with 95 % confidence at most s = min(1, 3 / groups) of all groups would disagree, by no more
    than the metric's bounds allow, so the mean m lies within [m - s (m - lowest), m + s (highest - m)]. A metric without bounds
    (nll) cannot be told from agreement: low = high = mean, which is no interval.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), percentile interval; Hanley and Lippman-Hand (1983).

    Args:
        numerator: per example.
        denominator: per example; ones for a mean.
        group: examples with the same number are resampled together.
        generator: the only source of randomness; the same seed gives common resamples, so differences can be paired.
        resamples: bootstrap samples.
        bounds: lowest and highest value that the metric can have; None = none.

    Returns:
        {"mean", "low", "high", "n"}: n is the number of examples.
    """
    return intervals(numerator[None], denominator[None], group, generator=generator, resamples=resamples, bounds=[bounds])[0]


def difference(
    a: Float[Tensor, "examples"],
    b: Float[Tensor, "examples"],
    denominator: Float[Tensor, "examples"],
    group: Int[Tensor, "examples"],
    *,
    generator: torch.Generator,
    resamples: int = 2000,
    bounds: Bounds = None,
) -> dict[str, float]:
    """Paired difference of two models on the same examples: sum(a - b) / sum(denominator) with its 95 % interval.

    Args:
        a: per example.
        b: per example, subtracted.
        denominator: per example.
        group: as in ``interval``.
        generator: as in ``interval``.
        resamples: as in ``interval``.
        bounds: of the metric that is compared; its difference has the bounds -width and width.
    """
    width = None if bounds is None else bounds[1] - bounds[0]
    apart = None if width is None else (-width, width)
    return interval(a - b, denominator, group, generator=generator, resamples=resamples, bounds=apart)


def intervals(
    numerators: Float[Tensor, "kinds examples"],
    denominators: Float[Tensor, "kinds examples"],
    group: Int[Tensor, "examples"],
    *,
    generator: torch.Generator,
    resamples: int = 2000,
    bounds: Sequence[Bounds] | None = None,
) -> list[dict[str, float]]:
    """``interval`` of several ratios on the same examples, from common resamples: far cheaper than one by one."""
    kinds = len(numerators)
    sums = _group_sums(torch.cat([numerators, denominators]).double(), group)
    low, high = _percentiles(sums, kinds, generator, resamples)
    means = (sums[:kinds].sum(1) / sums[kinds:].sum(1)).tolist()
    values = [{"mean": m, "low": lo, "high": hi, "n": numerators.shape[1]} for m, lo, hi in zip(means, low, high, strict=True)]
    share = min(1.0, 3 / sums.shape[1])
    for value, of_kind in zip(values, bounds or [None] * kinds, strict=True):
        if of_kind is not None and value["high"] - value["low"] <= ROUNDING:
            lowest, highest = of_kind
            value["low"] = value["mean"] - share * (value["mean"] - lowest)
            value["high"] = value["mean"] + share * (highest - value["mean"])
    return values


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


def _percentiles(
    sums: Float[Tensor, "both groups"], kinds: int, generator: torch.Generator, resamples: int
) -> tuple[list[float], list[float]]:
    """2.5 % and 97.5 % points of the ratios of sums over resampled groups.

    The first ``kinds`` rows of ``sums`` are numerators, the others denominators. Resamples are drawn in parts of at most ``PART``
    numbers, so memory does not grow with their number times that of the groups; the draws do not depend on the parts.
    """
    groups = sums.shape[1]
    one = torch.ones((), dtype=torch.float64)
    drawn = []
    for first in range(0, resamples, size := max(1, PART // groups)):
        picks = torch.randint(groups, (min(size, resamples - first), groups), generator=generator)
        times = torch.zeros(picks.shape, dtype=torch.float64).scatter_add(1, picks, one.expand(picks.shape))
        drawn.append(times @ sums.T)
    ratios = torch.cat([part[:, :kinds] / part[:, kinds:] for part in drawn])
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    return low, high


def _group_sums(values: Float[Tensor, "kinds examples"], group: Int[Tensor, "examples"]) -> Float[Tensor, "kinds groups"]:
    index = group.unique(return_inverse=True)[1]
    return torch.zeros(len(values), int(index.max()) + 1, dtype=torch.float64).index_add(1, index, values)
