"""What a cache is worth, against costs that were reckoned by hand and costs that are added up epoch by epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.caching import gain, most_draws

LLADA = {"trunk": 7.28, "step": 3.11}  # TFLOP an example: the trunk of LLaDA-8B, a refiner of width 1024 and 8 steps over it


@pytest.mark.parametrize(
    ("draws", "epochs", "expected"),
    [(1, 2.0, 1.54), (1, 5.0, 2.28), (1, 10.0, 2.71), (2, 5.0, 1.73), (4, 5.0, 1.16), (8, 5.0, 0.70), (5, 5.0, 1.0)],
)
def test_a_known_table(draws, epochs, expected):
    assert gain(**LLADA, draws=draws, epochs=epochs) == pytest.approx(expected, abs=0.006)


def test_it_never_exceeds_what_the_trunk_costs():
    assert gain(**LLADA, draws=1, epochs=1e9) == pytest.approx((7.28 + 3.11) / 3.11)


@given(trunk=st.integers(1, 99), step=st.integers(1, 99), draws=st.integers(1, 9), epochs=st.integers(1, 20))
def test_it_is_the_ratio_of_costs_that_are_added_up(trunk, step, draws, epochs):
    live = sum(trunk + step for _ in range(epochs))
    cached = sum(trunk for _ in range(draws)) + sum(step for _ in range(epochs))
    found = gain(float(trunk), float(step), draws, float(epochs))
    assert found == pytest.approx(live / cached) and (found > 1) == (draws < epochs)


@given(epochs=st.floats(0.01, 1e4))
def test_the_most_draws_pay_and_one_more_does_not(epochs):
    most = most_draws(epochs)
    assert most < epochs <= most + 1
