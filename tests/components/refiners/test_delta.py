import math

import pytest
import torch

from components.refiners.delta import Clamped, Damped, RmsScaled

ELSEWHERE = torch.full((2, 3, 4), 7.0), torch.full((2, 3, 4), -5.0)  # hidden and x, which say nothing to all updates but one


def test_rms_scaled_multiplies_by_the_rms():
    delta = torch.randn(2, 3, 4)
    expected = [2.5 * d for d in delta.flatten().tolist()]
    torch.testing.assert_close(RmsScaled()(delta, torch.tensor(2.5), *ELSEWHERE).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("hidden_rms", [0.1, 30.0])
@pytest.mark.parametrize(("scale", "limit"), [(0.1, 0.5), (2.0, 0.5)])
def test_clamped_equals_the_formula_entry_by_entry_whatever_the_rms(scale, limit, hidden_rms):
    delta = 3 * torch.randn(2, 3, 4)
    expected = [max(-limit, min(limit, scale * math.tanh(d))) for d in delta.flatten().tolist()]
    torch.testing.assert_close(Clamped(scale, limit)(delta, torch.tensor(hidden_rms), *ELSEWHERE).flatten(), torch.tensor(expected))


def test_clamped_stays_within_a_tenth_by_default():
    out = Clamped()(torch.tensor([[[-1e9, 0.0, 1e9]]]), torch.ones(()), torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))
    assert out.flatten().tolist() == pytest.approx([-0.1, 0.0, 0.1])


@pytest.mark.parametrize("sizes", [(0.0, 0.5), (-0.1, 0.5), (0.1, 0.0), (math.nan, 0.5)])
def test_sizes_that_bound_nothing_are_an_error(sizes):
    with pytest.raises(ValueError, match=f"above 0, got scale {sizes[0]} and limit {sizes[1]}"):
        Clamped(*sizes)


def test_damped_goes_from_the_states_to_the_backbones_with_the_update():
    delta, hidden, x = torch.randn(3, 2, 3, 4)
    change = Damped()(delta, torch.tensor(2.5), hidden, x)
    expected = [
        b + 2.5 * d - h for d, h, b in zip(delta.flatten().tolist(), hidden.flatten().tolist(), x.flatten().tolist(), strict=True)
    ]
    torch.testing.assert_close(change.flatten(), torch.tensor(expected))
    assert torch.equal(Damped()(torch.zeros_like(x), torch.tensor(2.5), x, x), torch.zeros_like(x))
