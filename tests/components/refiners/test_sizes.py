"""The sizes of Python and of gin are the same, and fit any backbone."""

import re

import pytest
import torch

from components.refiners.refiner import SlotRefiner
from components.refiners.sizes import SIZES, create_slot_refiner
from tests.conftest import ROOT


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_a_size_in_python_is_that_of_its_gin_file(size):
    text = (ROOT / "gin" / "sizes" / f"{size}.gin").read_text()
    bound = dict(re.findall(r"^refiner\.SlotRefiner\.(\w+) = (\w+)$", text, re.MULTILINE))
    assert bound == {"heads": "None", **{name: str(value) for name, value in SIZES[size].items()}}


@pytest.mark.parametrize("dim", [16, 64, 100 * 8, 3584, 4096])
def test_sizes_fit_any_width_and_grow(dim):
    with torch.device("meta"):
        made = [create_slot_refiner(dim, size, rotary=True) for size in ("tiny", "base", "large")]
        default = SlotRefiner(dim)
    assert count(made[0]) < count(default) < count(made[1]) < count(made[2])
    assert all(dim // refiner.attention.heads <= SIZES[size]["head_width"] for refiner, size in zip(made, SIZES, strict=True))


def test_changes_go_before_the_size():
    refiner = create_slot_refiner(64, "base", blocks=3, steps=2, heads=8, orthogonality=0.5)
    assert refiner.architecture["blocks"] == 3 and refiner.n_steps == 2 and refiner.attention.heads == 8
    assert refiner.architecture["delta_ratio"] == 4 and refiner.orthogonality == 0.5


def test_an_unknown_size_is_an_error_naming_those_there_are():
    with pytest.raises(ValueError, match="tiny, base, large, got size 'huge'"):
        create_slot_refiner(64, "huge")
