import math

import pytest
import torch

from components.refiners.delta import Clamped, RmsScaled


def test_rms_scaled_multiplies_by_the_rms():
    delta = torch.randn(2, 3, 4)
    expected = [2.5 * d for d in delta.flatten().tolist()]
    torch.testing.assert_close(RmsScaled()(delta, torch.tensor(2.5)).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("hidden_rms", [0.1, 30.0])
@pytest.mark.parametrize(("scale", "limit"), [(0.1, 0.5), (2.0, 0.5)])
def test_clamped_equals_the_formula_entry_by_entry_whatever_the_rms(scale, limit, hidden_rms):
    delta = 3 * torch.randn(2, 3, 4)
    expected = [max(-limit, min(limit, scale * math.tanh(d))) for d in delta.flatten().tolist()]
    torch.testing.assert_close(Clamped(scale, limit)(delta, torch.tensor(hidden_rms)).flatten(), torch.tensor(expected))


def test_clamped_stays_within_a_tenth_by_default():
    out = Clamped()(torch.tensor([[[-1e9, 0.0, 1e9]]]), torch.ones(()))
    assert out.flatten().tolist() == pytest.approx([-0.1, 0.0, 0.1])


@pytest.mark.parametrize("sizes", [(0.0, 0.5), (-0.1, 0.5), (0.1, 0.0), (math.nan, 0.5)])
def test_sizes_that_bound_nothing_are_an_error(sizes):
    with pytest.raises(ValueError, match=f"above 0, got scale {sizes[0]} and limit {sizes[1]}"):
        Clamped(*sizes)
