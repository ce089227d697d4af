import math

import pytest
import torch

from components.refiners.delta import clamped, rms_scaled


def test_rms_scaled_multiplies_by_the_rms():
    delta = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = [2.5 * d for d in delta.flatten().tolist()]
    torch.testing.assert_close(rms_scaled(delta, torch.tensor(2.5)).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("hidden_rms", [1.0, 7.0])
@pytest.mark.parametrize(("scale", "limit"), [(0.1, 0.5), (2.0, 0.5)])
def test_clamped_equals_the_formula_entry_by_entry_whatever_the_rms(scale, limit, hidden_rms):
    delta = 3 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = [max(-limit, min(limit, scale * math.tanh(d))) for d in delta.flatten().tolist()]
    torch.testing.assert_close(clamped(delta, torch.tensor(hidden_rms), scale, limit).flatten(), torch.tensor(expected))


def test_clamped_stays_within_a_tenth_by_default():
    out = clamped(torch.tensor([[[-1e9, 0.0, 1e9]]]), torch.ones(()))
    torch.testing.assert_close(out.flatten(), torch.tensor([-0.1, 0.0, 0.1]))
