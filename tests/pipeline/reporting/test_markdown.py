"""A table's cells and its lines."""

import pytest

from pipeline.reporting.markdown import cell, markdown


@pytest.mark.parametrize(
    ("mean", "low", "high", "shown"),
    [
        (0.96, 0.943, 0.975, ".960 [.943, .975]"),
        (1.0, 0.9, 1.0, "1.000 [.900, 1.000]"),
        (-0.05, -0.1, 0.0, "-.050 [-.100, .000]"),
        (10.25, 10.0, 20.5, "10.250 [10.000, 20.500]"),
    ],
)
def test_a_cell_is_a_mean_with_its_interval(mean, low, high, shown):
    assert cell({"mean": mean, "low": low, "high": high, "n": 9}) == shown


def test_markdown_lines_up():
    lines = markdown([["a", "long name"], ["longer", "b"]]).splitlines()
    assert lines == ["| a      | long name |", "|--------|-----------|", "| longer | b         |"]
