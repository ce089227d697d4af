"""The robust normaliser against a plain reference, and on what would break a plain one."""

import statistics

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from components.backbones.normaliser import RobustNormaliser


def fitted(x):
    normaliser = RobustNormaliser(x.shape[1])
    normaliser.fit(x)
    return normaliser


@pytest.mark.parametrize("n", [2, 3, 4, 5, 100, 101])
def test_centre_and_scale_are_those_of_the_standard_library(n):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    normaliser = fitted(x)
    for channel, values in enumerate(x.T.tolist()):
        first, median, third = statistics.quantiles(values, n=4, method="inclusive")
        assert normaliser.centre[channel].item() == pytest.approx(median, abs=1e-6)
        assert normaliser.scale[channel].item() == pytest.approx(0.7413 * (third - first), rel=1e-5)


def test_a_normal_channel_comes_out_with_deviation_one_and_no_shift():
    x = 3 + 0.2 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    out = fitted(x)(x)
    assert out.mean(0).abs().max() < 0.03 and (out.std(0) - 1).abs().max() < 0.03


def test_far_values_move_neither_centre_nor_scale():
    x = torch.randn(1001, 2, generator=torch.Generator().manual_seed(0))
    far = torch.cat([x, torch.full((20, 2), 1e6)])
    assert (fitted(far).scale / fitted(x).scale - 1).abs().max() < 0.1 and (fitted(far).centre - fitted(x).centre).abs().max() < 0.1


def test_a_channel_without_spread_keeps_its_scale():
    normaliser = fitted(torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    assert normaliser.scale[1] == 1 and normaliser(torch.tensor([[2.0, 5.0]])).tolist() == [[0.0, 0.0]]


@example([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.4e-45]])
@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2), min_size=1, max_size=20))
def test_the_inverse_undoes_it(rows):
    x = torch.tensor(rows)
    normaliser = fitted(x)
    assert torch.allclose(normaliser.inverse(normaliser(x)), x, atol=1e-3)
    assert bool(torch.isfinite(normaliser(x)).all())


def test_it_changes_nothing_before_it_was_fitted():
    x = torch.randn(4, 3)
    assert torch.equal(RobustNormaliser(3)(x), x)
