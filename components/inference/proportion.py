"""Exact intervals of proportions: what n independent yes-or-no observations allow to be said of the share that says yes.

Where a bootstrap fails: with no, one or two observations that differ from all others, resamples hardly differ at all.
"""

import math

import torch

ERROR = 0.05  # of both sides together: 95 % intervals
LEAST_EQUAL = 6  # equal signs, at which a two-sided sign test says something: 2 / 2^6 < 5 %, 2 / 2^5 > 5 %


def exact_interval(successes: int, n: int) -> tuple[float, float]:
    """Bound a proportion by the two binomial distributions that give what was seen, or more (less), 2.5 % of the time.

    low solves P(X >= successes) = 2.5 %, high solves P(X <= successes) = 2.5 %, X of Binomial(n, low or high); 0 and 1 where
    there is nothing beyond. It covers the true proportion at least 95 % of the time, whatever n and the proportion.
    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial" (1934).

    >>> tuple(round(bound, 4) for bound in exact_interval(1, 10))
    (0.0025, 0.445)
    """
    return 1 - _highest(n - successes, n), _highest(successes, n)


def unseen(n: int) -> float:
    """Bound the share of what not one of n observations shows: 1 - 0.025^(1 / n), about 3.7 / n.

    It is ``exact_interval(0, n)``'s upper end. Source: Hanley and Lippman-Hand, "If nothing goes wrong, is everything all right?"
    (1983), whose rule of three is the same at 5 % on one side.

    >>> round(unseen(100), 4)
    0.0362
    """
    return float(-math.expm1(math.log(ERROR / 2) / n))


def _highest(successes: int, n: int) -> float:
    """The proportion at which at most this many successes come 2.5 % of the time, by bisection of the binomial distribution."""
    if successes == n:
        return 1.0
    if not successes:
        return unseen(n)
    k = torch.arange(successes + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        at_most = float((ways + k * math.log(middle) + (n - k) * math.log1p(-middle)).exp().sum())
        low, high = (middle, high) if at_most > ERROR / 2 else (low, middle)
    return low
