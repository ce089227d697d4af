import dataclasses

import pytest
import torch

from components.batch import Batch
from components.quantisation import calibrated, expanded, quantised


def make(**extra):
    tokens = torch.arange(12).view(3, 4)
    return Batch(tokens, tokens + 1, tokens % 2 == 0, torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), **extra)


def test_length_is_the_number_of_sequences():
    assert len(make()) == 3


def test_to_moves_every_tensor():
    batch = make(attention=torch.ones(3, 4, dtype=torch.bool), hidden=torch.ones(3, 4, 5)).to(torch.device("meta"))
    moved = [value for f in dataclasses.fields(batch) if (value := getattr(batch, f.name)) is not None]
    assert [value.device.type for value in moved] == ["meta"] * 6


def test_to_keeps_absent_tensors_absent():
    moved = make().to(torch.device("meta"))
    assert moved.attention is None
    assert moved.hidden is None


def test_to_the_same_device_keeps_every_value_and_dtype():
    batch = make(attention=torch.ones(3, 4, dtype=torch.bool), hidden=torch.ones(3, 4, 5, dtype=torch.float16))
    moved = batch.to(torch.device("cpu"))
    for f in dataclasses.fields(batch):
        value = getattr(batch, f.name)
        assert value is getattr(moved, f.name) is None or torch.equal(getattr(moved, f.name), value)
        assert value is None or getattr(moved, f.name).dtype == value.dtype


@pytest.fixture(params=["int8", "fp8"])
def eight_bits(request):
    """A batch of states in eight bits, and the states as they were."""
    hidden = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 40.0, 5.0])
    channel = calibrated(hidden, request.param)
    stored, scale = quantised(hidden, channel, request.param)
    return make(hidden=stored.view(3, 4, 5), scale=scale.view(3, 4), channel=channel), hidden.view(3, 4, 5)


def test_to_expands_states_in_eight_bits(eight_bits):
    batch, hidden = eight_bits
    moved = batch.to(torch.device("cpu"))
    assert moved.hidden.dtype == torch.float32 and moved.scale is None and moved.channel is None
    assert torch.equal(moved.hidden, expanded(batch.hidden, batch.scale, batch.channel))
    torch.testing.assert_close(moved.hidden, hidden, rtol=0.07, atol=0.3)
    assert torch.equal(moved.tokens, batch.tokens) and torch.equal(moved.weights, batch.weights)


def test_to_again_changes_nothing(eight_bits):
    moved = eight_bits[0].to(torch.device("cpu"))
    assert torch.equal(moved.to(torch.device("cpu")).hidden, moved.hidden)


@pytest.mark.parametrize("length", [1, 3, 4])
def test_cut_keeps_the_first_positions(eight_bits, length):
    whole = dataclasses.replace(eight_bits[0], attention=torch.arange(4).expand(3, 4) < 3)
    batch = whole.cut(length)
    assert len(batch) == 3 and torch.equal(batch.channel, whole.channel)
    for name in ("tokens", "targets", "masked", "weights", "attention", "hidden", "scale"):
        kept = getattr(batch, name)
        assert kept.shape[1] == length and torch.equal(kept.float(), getattr(whole, name).float()[:, :length]), name
    expanded_first = whole.to(torch.device("cpu")).cut(length).hidden
    assert torch.equal(batch.to(torch.device("cpu")).hidden, expanded_first)


def test_cut_keeps_absent_tensors_absent():
    batch = make().cut(2)
    assert batch.tokens.tolist() == [[0, 1], [4, 5], [8, 9]] and batch.hidden is None and batch.attention is None


def test_a_batch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().tokens = torch.zeros(3, 4, dtype=torch.long)
