"""Pooling: what is padding has no part in it."""

import pytest
import torch

from components.backbones.pooling import Unit, first, last, maximum, mean, mean_over_root, unit_mean

STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[3.0, 4.0], [7.0, 7.0], [7.0, 7.0]]])
ATTENTION = torch.tensor([[True, True, False], [True, False, False]])


def test_the_mean_is_over_attended_tokens():
    assert mean(STATES, ATTENTION).tolist() == [[2.0, 4.0], [3.0, 4.0]]


def test_the_unit_mean_is_that_at_length_one():
    assert torch.allclose(unit_mean(STATES, ATTENTION), torch.tensor([[20**-0.5 * 2, 20**-0.5 * 4], [0.6, 0.8]]))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (first, [[1.0, 2.0], [3.0, 4.0]]),
        (last, [[3.0, 6.0], [3.0, 4.0]]),
        (maximum, [[3.0, 6.0], [3.0, 4.0]]),
        (mean_over_root, [[4 / 2**0.5, 8 / 2**0.5], [3.0, 4.0]]),
        (Unit(first), [[0.2**0.5, 2 * 0.2**0.5], [0.6, 0.8]]),
        (Unit(mean), [[20**-0.5 * 2, 20**-0.5 * 4], [0.6, 0.8]]),
    ],
)
def test_others_see_no_padding_either(pooling, expected):
    for padding in (9.0, -9.0, 1e9):
        states = torch.where(ATTENTION[..., None], STATES, padding)
        assert torch.allclose(pooling(states, ATTENTION), torch.tensor(expected))
