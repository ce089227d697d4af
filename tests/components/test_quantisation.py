"""States in eight bits: how far restored ones may be off, with outliers among channels and tokens, and always numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.quantisation import DTYPES, LARGEST, calibrated, expanded, quantised, relative_error

hypothesis_settings = settings(max_examples=40, deadline=None)
FORMATS = pytest.mark.parametrize("format", ["int8", "fp8"])


def states(tokens=512, dim=64, seed=0, channels=1.0, token=1.0):
    """Normal states whose first two channels are ``channels`` times as large, and whose first token is ``token`` times as large."""
    hidden = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(seed))
    hidden[:, :2] *= channels
    hidden[0] *= token
    return hidden


def restored(hidden, channel, format):
    return expanded(*quantised(hidden, channel, format), channel)


def errors(hidden, channel, format):
    """|restored - hidden| / |hidden| of each token, in float64."""
    exact = hidden.double()
    return (restored(hidden, channel, format).double() - exact).norm(dim=1) / exact.norm(dim=1)


SIZES = st.floats(-4, 4).map(lambda exponent: 10.0**exponent)


@hypothesis_settings
@given(st.integers(0, 2**31), SIZES, SIZES, SIZES)
def test_int8_is_off_by_half_a_step_at_most(seed, size, channels, token):
    hidden = size * states(20, 8, seed, channels, token)
    channel = calibrated(hidden, "int8")
    step = (hidden / channel).abs().amax(1, keepdim=True) / 127 * channel
    assert ((restored(hidden, channel, "int8") - hidden).abs() <= 0.5001 * step).all()


@hypothesis_settings
@given(st.integers(0, 2**31), SIZES, SIZES, SIZES)
def test_fp8_is_off_by_a_sixteenth_at_most_or_half_its_smallest_step(seed, size, channels, token):
    """Three bits of mantissa: half of 2^-3 of the number; below 2^-6 steps are even, 2^-9."""
    hidden = size * states(20, 8, seed, channels, token)
    channel = calibrated(hidden, "fp8")
    scale = hidden.abs().amax(1, keepdim=True) / 448
    bound = torch.maximum(hidden.abs() / 16, scale * 2**-10)
    assert ((restored(hidden, channel, "fp8") - hidden).abs() <= 1.0001 * bound).all()


@FORMATS
def test_scales_and_channels_take_the_stored_numbers_to_the_largest(format):
    stored, scale = quantised(states(), calibrated(states(), format), format)
    assert stored.dtype == DTYPES[format] and stored.shape == (512, 64) and scale.shape == (512,)
    assert (stored.float().abs().amax(1) == LARGEST[format]).all()


def test_levelled_channels_make_int8_far_better_where_some_are_large():
    hidden = states(channels=50.0)
    off = []
    for channel in (calibrated(hidden, "int8"), torch.ones(64)):
        others = (restored(hidden, channel, "int8") - hidden)[:, 2:]  # which large channels would drown
        off.append(float(others.norm() / hidden[:, 2:].norm()))
    assert off[0] < 0.02 and off[1] > 10 * off[0]
    assert errors(hidden, calibrated(hidden, "int8"), "int8").mean() < 0.012


def test_fp8_needs_no_levelled_channels():
    hidden = states(channels=50.0)
    assert torch.equal(calibrated(hidden, "fp8"), torch.ones(64))
    assert ((restored(hidden, torch.ones(64), "fp8") - hidden)[:, 2:].norm() / hidden[:, 2:].norm()) < 0.03


@FORMATS
def test_a_large_token_costs_the_others_nothing(format):
    plain, outlier = states(), states(token=1e4)
    channel = calibrated(plain, format)
    without, beside = errors(plain, channel, format), errors(outlier, channel, format)
    assert torch.equal(without[1:], beside[1:]) and beside[0] == pytest.approx(float(without[0]), rel=1e-3)
    assert beside.max() < 0.04


@pytest.mark.parametrize(("format", "bound"), [("int8", 0.02), ("fp8", 0.03)])
def test_calibration_on_other_tokens_will_do(format, bound):
    channel = calibrated(states(seed=1, channels=50.0), format)
    assert errors(states(seed=2, channels=50.0), channel, format).mean() < bound


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_come_back_as_zeros_among_other_tokens(format, dtype):
    hidden = states().to(dtype)
    hidden[3], hidden[:, 5] = 0, 0
    channel = calibrated(hidden, format)
    back = restored(hidden, channel, format)
    assert back.dtype == torch.float32 and bool((channel > 0).all())
    assert (back[3] == 0).all() and (back[:, 5] == 0).all() and back[2].norm() > 0


@FORMATS
@pytest.mark.parametrize("flushing", [False, True])
def test_nothing_but_zeros_gives_zeros(format, flushing):
    """Also where numbers below the normal ones count as 0."""
    torch.set_flush_denormal(flushing)
    try:
        hidden = torch.zeros(3, 4)
        assert torch.equal(restored(hidden, calibrated(hidden, format), format), hidden)
    finally:
        torch.set_flush_denormal(False)


@FORMATS
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e10])
def test_stored_numbers_scales_and_errors_are_finite(format, size):
    hidden = size * states(channels=1e3, token=1e3)
    channel = calibrated(hidden[1:], format)
    stored, scale = quantised(hidden, channel, format)
    assert all(bool(x.float().isfinite().all()) for x in (channel, stored, scale, expanded(stored, scale, channel)))
    assert relative_error(hidden, stored, scale, channel).max() < 0.1


@FORMATS
def test_what_eight_bits_can_hold_comes_back_exactly(format):
    """The largest number in every token and scales of powers of two: nothing is rounded."""
    held = torch.randint(-100, 100, (6, 8), generator=torch.Generator().manual_seed(0)).float().to(DTYPES[format]).float()
    held[:, 3] = LARGEST[format]
    channel = 2.0 ** torch.arange(-4, 4)
    hidden = held * channel * 2.0 ** torch.arange(-3, 3)[:, None]
    stored, scale = quantised(hidden, channel, format)
    assert torch.equal(stored.float(), held)
    assert torch.equal(expanded(stored, scale, channel), hidden)


def test_expansion_takes_batches_of_sequences():
    hidden, channel = states(6, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    stored, scale = quantised(hidden, channel, "int8")
    batch = expanded(stored.view(2, 3, 4), scale.view(2, 3), channel)
    assert torch.equal(batch, expanded(stored, scale, channel).view(2, 3, 4))
    for i in range(6):
        for j in range(4):
            assert batch[i // 3, i % 3, j].item() == pytest.approx(int(stored[i, j]) * scale[i].item() * (j + 1))


@FORMATS
def test_relative_error_is_the_measured_one(format):
    hidden = states(channels=20.0)
    channel = calibrated(hidden, format)
    told = relative_error(hidden, *quantised(hidden, channel, format), channel)
    assert torch.allclose(told.double(), errors(hidden, channel, format), rtol=1e-4) and told.min() > 0
