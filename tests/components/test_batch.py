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
    whole = make(attention=torch.ones(3, 4, dtype=torch.bool), hidden=torch.ones(3, 4, 5), taps=torch.ones(3, 4, 10))
    batch = whole.to(torch.device("meta"))
    moved = [value for f in dataclasses.fields(batch) if isinstance(value := getattr(batch, f.name), torch.Tensor)]
    assert [value.device.type for value in moved] == ["meta"] * 8  # with the rows, which were found on the way


def test_later_passes_go_where_the_batch_goes():
    batch = make(later=(make(attention=torch.ones(3, 4, dtype=torch.bool)),))
    assert batch.passes[0] is batch and len(batch.passes) == 2 and make().passes[0].later is None
    moved = batch.to(torch.device("meta")).later[0]
    assert moved.tokens.device.type == moved.attention.device.type == moved.rows.device.type == "meta"
    assert torch.equal(batch.cut(2).later[0].tokens, batch.tokens[:, :2])
    assert torch.equal(batch.to(torch.device("cpu")).take(torch.tensor([2])).later[0].masked, batch.masked[2:])


def test_states_of_later_passes_are_expanded_too(eight_bits):
    batch, _ = eight_bits
    moved = dataclasses.replace(batch, later=(batch,)).to(torch.device("cpu"))
    assert torch.equal(moved.later[0].hidden, moved.hidden) and moved.later[0].scale is None


def test_to_keeps_absent_tensors_absent():
    moved = make().to(torch.device("meta"))
    assert moved.attention is None
    assert moved.hidden is None


def test_to_the_same_device_keeps_every_value_and_dtype():
    batch = make(attention=torch.ones(3, 4, dtype=torch.bool), hidden=torch.ones(3, 4, 5, dtype=torch.float16))
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.rows, batch.supervised)
    for f in dataclasses.fields(batch):
        if f.name == "rows":
            continue
        if not isinstance(value := getattr(batch, f.name), torch.Tensor):
            assert value == getattr(moved, f.name)
            continue
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


@pytest.mark.parametrize("rows", [[0], [2, 0], [1, 1, 2], []])
def test_take_keeps_these_sequences_with_all_that_belongs_to_them(rows):
    whole = make(attention=torch.arange(4).expand(3, 4) < 3, hidden=torch.randn(3, 4, 5)).to(torch.device("cpu"))
    some = whole.take(torch.tensor(rows, dtype=torch.long))
    assert len(some) == len(rows)
    for name in ("tokens", "targets", "masked", "weights", "attention", "hidden"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[rows]), name
    assert some.scale is None and some.channel is None


@pytest.mark.parametrize("rows", [[0], [2, 0], [1, 2]])
def test_what_is_supervised_is_found_anew_among_those_taken(rows):
    whole = dataclasses.replace(make(), masked=torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.6)
    some = whole.to(torch.device("cpu")).take(torch.tensor(rows))
    assert torch.equal(some.targets.flatten()[some.supervised], whole.targets[rows][whole.masked[rows]])


def test_supervised_positions_come_sequence_after_sequence_and_survive_to():
    batch = make()
    expected = [i for i in range(12) if batch.masked.flatten()[i]]
    assert batch.supervised.tolist() == batch.to(torch.device("cpu")).supervised.tolist() == expected
    assert batch.rows is None and batch.to(torch.device("cpu")).rows.tolist() == expected


# Taps


@pytest.fixture(params=["fp32", "int8", "fp8"])
def tapped(request):
    """A batch with the states of the split and of layers 7 and 2, and these states as ``to`` must give them."""
    states = torch.randn(12, 15, generator=torch.Generator().manual_seed(3))
    if request.param == "fp32":
        return make().entered(states.view(3, 4, 15), (7, 2)), states.view(3, 4, 15)
    channel = calibrated(states, request.param)
    stored, scale = quantised(states, channel, request.param)
    batch = make(scale=scale.view(3, 4), channel=channel).entered(stored.view(3, 4, 15), (7, 2))
    return batch, expanded(stored, scale, channel).view(3, 4, 15)


def test_states_side_by_side_are_told_apart(tapped):
    batch, states = tapped
    moved = batch.to(torch.device("cpu"))
    assert moved.tap_layers == (7, 2) and moved.scale is None and moved.channel is None
    for ours, begin in ((moved.hidden, 0), (moved.tap(7), 5), (moved.tap(2), 10)):
        assert torch.equal(ours, states[..., begin : begin + 5])
    assert torch.equal(moved.to(torch.device("cpu")).taps, moved.taps)


@pytest.mark.parametrize("rows", [[0], [2, 0], []])
def test_sequences_and_positions_take_their_taps_along(tapped, rows):
    batch, states = tapped
    some = batch.cut(3).to(torch.device("cpu")).take(torch.tensor(rows, dtype=torch.long))
    assert torch.equal(some.tap(2), states[rows, :3, 10:]) and some.tap_layers == (7, 2)


@pytest.mark.parametrize("layer", [0, 5, -7])
def test_a_tap_that_did_not_come_along_is_named_with_those_that_did(tapped, layer):
    with pytest.raises(ValueError, match=rf"that enter layer {layer}, this batch has those of \[7, 2\]"):
        tapped[0].tap(layer)


def test_states_without_taps_are_the_hidden_ones():
    states = torch.randn(3, 4, 5)
    batch = make().entered(states, ())
    assert batch.hidden is states and batch.taps is None and batch.tap_layers == ()
    with pytest.raises(ValueError, match=r"layer 1, this batch has those of \[\]"):
        batch.tap(1)
