"""When an interval says something: never of one example, and never where all agree."""

import pytest

from pipeline.reporting.findings import findings
from pipeline.reporting.intervals import compares_exact, is_clear
from pipeline.reporting.markdown import bold_if_clear
from tests.support.handmade import model


@pytest.mark.parametrize(
    ("low", "high", "n", "clear"),
    [
        (0.1, 0.3, 9, True),
        (-0.3, -0.1, 2, True),
        (-0.1, 0.3, 9, False),
        (0.0, 0.3, 9, False),
        (0.1, 0.3, 1, False),
        (0.2, 0.2, 9, False),
        (-0.5000000000000003, -0.4999999999999997, 2, False),
        (-0.2, -0.2, 1, False),
    ],
)
def test_an_interval_is_clear_of_zero_everywhere_or_nowhere(low, high, n, clear):
    value = {"mean": (low + high) / 2, "low": low, "high": high, "n": n}
    assert is_clear(value) is clear
    assert bold_if_clear(value).startswith("**") is clear
    (line,) = findings("test", {"frozen": model(0.5, 1.0)}, {"a - b": {"test": {"exact": value}}})
    assert ("not distinguishable" not in line) is clear


@pytest.mark.parametrize(("shares", "compared"), [([0.0, 0.05], True), ([0.049, 0.0], False), ([1.0], True)])
def test_exact_answers_are_compared_where_any_model_has_some(shares, compared):
    assert compares_exact(shares) is compared
