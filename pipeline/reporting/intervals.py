"""What an interval allows to be said: whether a difference is clear of zero, and whether exact answers are worth comparing."""

from collections.abc import Iterable, Mapping

ROUNDING = 1e-9  # width of an interval, over its bounds, that sums of the same numbers may have
LEAST_EXACT = 0.05  # share of exact answers below which models are compared by nll


def is_clear(value: Mapping[str, float]) -> bool:
    """Whether an interval is clear of zero; one of a single example, or without width, shows nothing and never is.

    Where all examples agree, a share and its difference still have a width (``components.inference.metrics.interval``).

    >>> is_clear({"mean": 0.2, "low": 0.1, "high": 0.3, "n": 9}), is_clear({"mean": 0.2, "low": 0.2, "high": 0.2, "n": 1})
    (True, False)
    """
    low, high = value["low"], value["high"]
    return value["n"] > 1 and high - low > ROUNDING * max(abs(low), abs(high)) and (low > 0 or high < 0)


def compares_exact(shares: Iterable[float]) -> bool:
    """Whether any of these shares of exact answers is large enough to compare models by them.

    >>> compares_exact([0.0, 0.06]), compares_exact([0.0, 0.04])
    (True, False)
    """
    return max(shares) >= LEAST_EXACT
