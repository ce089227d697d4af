"""Exact intervals of proportions, against printed values and the definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.inference.proportion import exact_interval, unseen


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.3085), (1, 10, 0.0025, 0.4450), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1.0), (4, 20, 0.0573, 0.4366),
     (0, 1, 0.0, 0.975), (1, 1, 0.025, 1.0), (81, 263, 0.2527, 0.3676)],
)  # fmt: skip
def test_the_interval_is_that_of_the_tables(successes, n, low, high):
    assert exact_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300), st.data())
def test_each_end_leaves_a_fortieth_beyond_it(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = exact_interval(successes, n)

    def at_most(k, p):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    assert at_most(successes, high) == pytest.approx(0.025) if successes < n else high == 1
    assert 1 - at_most(successes - 1, low) == pytest.approx(0.025) if successes else low == 0
    mirrored = exact_interval(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored)


@pytest.mark.parametrize("n", [1, 3, 50, 422_786])
def test_what_is_unseen_is_the_end_of_no_successes(n):
    assert unseen(n) == exact_interval(0, n)[1] and (1 - unseen(n)) ** n == pytest.approx(0.025)


def test_hundreds_of_thousands_are_no_matter():
    """Far from the ends the binomial distribution is normal."""
    n, successes = 422_786, 126_836
    share = successes / n
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    assert exact_interval(successes, n) == pytest.approx((share - half, share + half), abs=1e-5)
