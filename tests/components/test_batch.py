import dataclasses

import pytest
import torch

from components.batch import Batch


def make(**extra):
    tokens = torch.arange(12).view(3, 4)
    return Batch(tokens, tokens + 1, tokens % 2 == 0, torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), **extra)


def test_length_is_the_number_of_sequences():
    assert len(make()) == 3


def test_to_moves_every_tensor():
    batch = make(attention=torch.ones(3, 4, dtype=torch.bool), hidden=torch.ones(3, 4, 5)).to(torch.device("meta"))
    assert [getattr(batch, f.name).device.type for f in dataclasses.fields(batch)] == ["meta"] * 6


def test_to_keeps_absent_tensors_absent():
    moved = make().to(torch.device("meta"))
    assert moved.attention is None
    assert moved.hidden is None


def test_to_the_same_device_keeps_every_value_and_dtype():
    batch = make(attention=torch.ones(3, 4, dtype=torch.bool), hidden=torch.ones(3, 4, 5, dtype=torch.float16))
    moved = batch.to(torch.device("cpu"))
    for f in dataclasses.fields(batch):
        torch.testing.assert_close(getattr(moved, f.name), getattr(batch, f.name), rtol=0, atol=0)


def test_a_batch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().tokens = torch.zeros(3, 4, dtype=torch.long)
