"""Bins of confidence and the calibration error, against counting by hand."""

import pytest

from pipeline.reporting.calibration import Bin, bins, calibration_error
from pipeline.reporting.refinement import Traced


def traced(tokens):
    """One example, whose tokens are (probability, right, masked)."""
    ids = [0 if right else 1 for _, right, _ in tokens]
    state = {"ids": ids, "probability": [p for p, _, _ in tokens]}
    return Traced([[0] * len(tokens)], [[True] * len(tokens)], [[masked for *_, masked in tokens]], {"m": [[{}, state]]})


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([(0.95, True, True), (0.97, False, True)], [Bin(2, 0.96, 0.5)]),
        ([(0.05, False, True), (0.55, True, True), (0.5, True, True)], [Bin(1, 0.05, 0.0), Bin(2, 0.525, 1.0)]),
        ([(1.0, True, True)], [Bin(1, 1.0, 1.0)]),
        ([(0.0, False, True), (0.3, True, False)], [Bin(1, 0.0, 0.0)]),
    ],
)
def test_tokens_that_are_filled_in_fall_into_bins(tokens, expected):
    assert [(part.n, part.confidence, part.right) for part in bins(traced(tokens), "m")] == [
        (part.n, pytest.approx(part.confidence), part.right) for part in expected
    ]


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([Bin(5, 0.7, 0.7)], 0.0),
        ([Bin(1, 0.2, 0.0), Bin(1, 0.9, 1.0)], 0.15),
        ([Bin(3, 0.9, 0.5), Bin(1, 0.5, 0.5)], 0.3),
    ],
)
def test_the_calibration_error_weighs_bins_by_their_tokens(parts, error):
    assert calibration_error(parts) == pytest.approx(error)
