"""Metrics with 95 % intervals. Per-example sums come in, grouped by what is independent; intervals resample whole groups.

Puzzles that share a solution grid are not independent, so their grid is the unit that is resampled (cluster bootstrap). Where
resamples cannot tell how sure a number is, an exact interval speaks (``components.inference.proportion``).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from components.inference.proportion import LEAST_EQUAL, exact_interval, unseen

Bounds = tuple[float, float] | None  # lowest and highest value of a metric; None = it has none
SHARE: Bounds = (0.0, 1.0)  # of a share, such as accuracy
BLOCK = 256  # rows of logits that are looked at together: what is made of them stays near the processor
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
        solved: 1 where they are as good as right: other tokens that the example allows as well, where it does.
    """

    nll: Float[Tensor, "batch"]
    correct: Float[Tensor, "batch"]
    tokens: Float[Tensor, "batch"]
    exact: Float[Tensor, "batch"]
    solved: Float[Tensor, "batch"]


def count(logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, "batch seq"], masked: Bool[Tensor, "batch seq"]) -> Counts:
    """Counts from the logits of the masked positions (in row-major order of ``masked``)."""
    return counts_of(*losses(logits, targets[masked].long()), targets, masked)


def counts_of(
    nll: Float[Tensor, "rows"], best: Int[Tensor, "rows"], targets: Int[Tensor, "batch seq"], masked: Bool[Tensor, "batch seq"]
) -> Counts:
    """Counts from the losses and the most likely ids of the masked positions (in row-major order of ``masked``)."""
    right = best == targets[masked]
    row = masked.nonzero()[:, 0]
    sums = [
        torch.zeros(len(masked), dtype=torch.float64, device=nll.device).index_add(0, row, x)
        for x in (nll.double(), right.double())
    ]
    tokens = masked.sum(1).double()
    exact = (sums[1] == tokens).double()
    return Counts(nll=sums[0], correct=sums[1], tokens=tokens, exact=exact, solved=exact.clone())


def losses(logits: Float[Tensor, "rows vocab"], expected: Int[Tensor, "rows"]) -> tuple[Float[Tensor, "rows"], Int[Tensor, "rows"]]:
    """Compute each row's loss, -log p of the id that is expected, and its most likely id."""
    parts = [_losses(*part) for part in zip(logits.split(BLOCK), expected.split(BLOCK), strict=True)]
    loss, best = (torch.cat(each) for each in zip(*parts, strict=True))
    return loss, best


def _losses(logits: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()  # of bfloat16 a CPU takes four times as long to find the largest
    return F.cross_entropy(logits, expected, reduction="none"), logits.argmax(-1)


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

    A bootstrap says nothing where all groups agree (or there is one), and too little where few differ. Of metrics with bounds:

    * Every group at one of the bounds, all of one weight (right or wrong answers): the exact binomial interval of Clopper and
      Pearson, in place of the bootstrap's. It covers the truth at least 95 % of the time, for any share and number of groups.
    * All groups at one value m between them: with 97.5 % confidence at most s = 1 - 0.025^(1 / groups) of all groups would say
      something else, by no more than the bounds allow, so the mean lies within [m - s (m - lowest), m + s (highest - m)]. A mean
      outside would need a share of agreeing groups below 1 - s, at which all of them agree less than 2.5 % of the time.

    A metric without bounds (nll) in which all agree has low = high = mean, which is no interval.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), percentile interval; Clopper and
    Pearson (1934), Hanley and Lippman-Hand (1983), see ``components.inference.proportion``.

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

    The interval reaches zero where fewer than six groups differ at all: the two-sided sign test finds five equal signs by chance
    one time in 16. Six groups of the same difference of 1 are the first whose interval (see ``interval``) is clear: 1 - 2 s > 0
    from 6 on, as with the sign test.
    Source: Arbuthnot's sign test, as in Conover, "Practical Nonparametric Statistics" (1999), 3.4.

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
    value = interval(a - b, denominator, group, generator=generator, resamples=resamples, bounds=apart)
    if int(_group_sums((a - b).double()[None], group).count_nonzero()) < LEAST_EQUAL:
        value["low"], value["high"] = min(value["low"], 0.0), max(value["high"], 0.0)
    return value


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
    low, high = percentiles(_ratios(sums, kinds, generator, resamples))
    means = (sums[:kinds].sum(1) / sums[kinds:].sum(1)).tolist()
    values = [{"mean": m, "low": lo, "high": hi, "n": numerators.shape[1]} for m, lo, hi in zip(means, low, high, strict=True)]
    for value, own, weights, of_kind in zip(values, sums[:kinds], sums[kinds:], bounds or [None] * kinds, strict=True):
        if of_kind is not None:
            value["low"], value["high"] = _within_bounds(value, own, weights, of_kind)
    return values


def _within_bounds(
    value: Mapping[str, float], own: Float[Tensor, "groups"], weights: Float[Tensor, "groups"], bounds: tuple[float, float]
) -> tuple[float, float]:
    """The exact interval where groups are all at the bounds, or agree; the bootstrap's elsewhere."""
    (lowest, highest), groups = bounds, len(own)
    least, most = ((own - bound * weights).abs() <= ROUNDING for bound in bounds)
    if bool((least | most).all() and (weights == weights[0]).all()):
        low, high = exact_interval(int(most.sum()), groups)
        return lowest + low * (highest - lowest), lowest + high * (highest - lowest)
    if value["high"] - value["low"] > ROUNDING:
        return value["low"], value["high"]
    mean, share = value["mean"], unseen(groups)
    return mean - share * (mean - lowest), mean + share * (highest - mean)


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


def resampled_ratios(
    numerators: Float[Tensor, "kinds examples"],
    denominators: Float[Tensor, "kinds examples"],
    group: Int[Tensor, "examples"],
    *,
    generator: torch.Generator,
    resamples: int = 2000,
) -> Float[Tensor, "resamples kinds"]:
    """Compute the ratios of sums in each bootstrap sample, as ``intervals`` does: for what is a function of several of them."""
    return _ratios(_group_sums(torch.cat([numerators, denominators]).double(), group), len(numerators), generator, resamples)


def percentiles(values: Float[Tensor, "resamples kinds"]) -> tuple[list[float], list[float]]:
    """Find the 2.5 % and 97.5 % points of each kind over the resamples."""
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    return low, high


def differing_groups(values: Float[Tensor, "kinds examples"], group: Int[Tensor, "examples"]) -> int:
    """Count the groups in which any kind is not zero."""
    return int(_group_sums(values.double(), group).any(0).sum())


def _ratios(
    sums: Float[Tensor, "both groups"], kinds: int, generator: torch.Generator, resamples: int
) -> Float[Tensor, "resamples kinds"]:
    """Ratios of sums over resampled groups.

    The first ``kinds`` rows of ``sums`` are numerators, the others denominators. Resamples are drawn in parts of at most ``PART``
    numbers, so memory does not grow with their number times that of the groups; the draws do not depend on the parts.
    """
    groups = sums.shape[1]
    one = torch.ones((), dtype=torch.float64)
    size = min(resamples, max(1, PART // groups))
    picks, times = torch.empty(size, groups, dtype=torch.int64), torch.empty(size, groups, dtype=torch.float64)  # of every part
    drawn = []
    for first in range(0, resamples, size):
        rows = min(size, resamples - first)
        torch.randint(groups, (rows, groups), generator=generator, out=picks[:rows])
        drawn.append(times[:rows].zero_().scatter_add_(1, picks[:rows], one.expand(rows, groups)) @ sums.T)
    return torch.cat([part[:, :kinds] / part[:, kinds:] for part in drawn])


def _group_sums(values: Float[Tensor, "kinds examples"], group: Int[Tensor, "examples"]) -> Float[Tensor, "kinds groups"]:
    index = group.unique(return_inverse=True)[1]
    return torch.zeros(len(values), int(index.max()) + 1, dtype=torch.float64).index_add(1, index, values)
