"""Shared tensors: a copy's or a part's weights are the very ones, in the precision that they are read in."""

import pytest
import torch
from torch import nn

from components.nn.masters import widen
from components.nn.sharing import share, twin


class Two(nn.Module):
    """Two layers, the second tied to a head; a buffer that is not stored."""

    def __init__(self, first=True):
        super().__init__()
        self.first = nn.Linear(3, 3) if first else None
        self.second, self.head = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
        self.head.weight = self.second.weight
        self.register_buffer("angle", torch.rand(3), persistent=False)

    def forward(self, x):
        return self.head(x + self.angle) + self.second(x)


def tensors(module):
    return {name: id(tensor) for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]}


def test_a_twin_has_the_very_tensors_until_it_is_given_others():
    whole = Two()
    copied = twin(whole)
    assert tensors(copied) == tensors(whole) and copied.head is not whole.head
    copied.first.load_state_dict({"weight": torch.ones(3, 3)}, strict=False, assign=True)
    assert not torch.equal(whole.first.weight, torch.ones(3, 3)) and tensors(copied) != tensors(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_has_the_very_tensors_and_reads_them_as_the_whole_does(dtype):
    whole = Two().to(dtype).eval()
    widen(whole, [whole.head.weight])
    part = share(Two(first=False), whole)
    assert tensors(part).items() < tensors(whole).items() and not part.training
    assert part.head._parameters["weight"] is part.second._parameters["weight"]
    x = torch.rand(2, 3).to(dtype)
    assert part.head.weight.dtype == dtype and torch.equal(part(x), whole(x))
