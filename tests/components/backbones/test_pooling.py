"""Pooling: what is padding has no part in it."""

import torch

from components.backbones.pooling import mean, unit_mean

STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[3.0, 4.0], [7.0, 7.0], [7.0, 7.0]]])
ATTENTION = torch.tensor([[True, True, False], [True, False, False]])


def test_the_mean_is_over_attended_tokens():
    assert mean(STATES, ATTENTION).tolist() == [[2.0, 4.0], [3.0, 4.0]]


def test_the_unit_mean_is_that_at_length_one():
    assert torch.allclose(unit_mean(STATES, ATTENTION), torch.tensor([[20**-0.5 * 2, 20**-0.5 * 4], [0.6, 0.8]]))
