"""Taps: layers by number, and the states that enter them beside those that enter the split."""

import pytest
import torch

from components.backbones.recursive_lm import RecursiveLM
from components.backbones.sentence_table import SentenceTable
from components.backbones.taps import below_split, numbered, tapped_trunk
from components.backbones.tiny_lm import TinyLM
from tests.support.cores import ATTENTION, DIM, HEADS, SEQ, VOCAB, recursive

LAYERS = 4


@pytest.fixture
def backbone():
    model = TinyLM(VOCAB, SEQ, DIM, LAYERS, HEADS)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("taps", "layers", "expected"),
    [((), 0, ()), ((0,), 1, (0,)), ((-1,), 1, (0,)), ((2, 15, -4), 30, (2, 15, 26)), ((-30, 3), 30, (0, 3))],
)
def test_negative_layers_count_from_the_last(taps, layers, expected):
    assert numbered(taps, layers) == below_split(taps, layers, layers) == expected


@pytest.mark.parametrize(
    ("taps", "split", "message"),
    [
        ((30,), 29, r"there are 30 \(0 to 29\), got 30$"),
        ((2, -31), 29, r"there are 30 \(0 to 29\), got -31$"),
        ((1, 2, 1), 29, r"layers of their own, got layer 1 twice in \[1, 2, 1\]$"),
        ((26, -4), 29, r"got layer 26 twice in \[26, -4\]$"),
        ((2, 29), 29, r"^tap 29 is layer 29, at or above the split \(layer 29\): .* set TAPS to layers from 0 to 28$"),
        ((-1,), 29, r"^tap -1 is layer 29, at or above"),
        ((27, 28), 28, r"^tap 28 is layer 28, at or above the split \(layer 28\)"),
        ((0,), 0, r"^tap 0 needs a layer below the split, which is layer 0: set TAPS = \(\)$"),
    ],
)
def test_taps_that_cannot_be_stored_are_an_error_naming_them(taps, split, message):
    with pytest.raises(ValueError, match=message):
        below_split(taps, 30, split)


@pytest.mark.parametrize("taps", [(), (0,), (2, 0), (1, 2, 3)])
@pytest.mark.parametrize("attention", [None, ATTENTION])
def test_the_states_of_every_tap_lie_behind_those_at_the_split(backbone, taps, attention):
    tokens = torch.randint(VOCAB, (3, SEQ), generator=torch.Generator().manual_seed(1))
    ours = tapped_trunk(backbone, tokens, attention, LAYERS, taps)
    expected = [backbone.trunk(tokens, attention, layer) for layer in (LAYERS, *taps)]
    assert torch.equal(ours, torch.cat(expected, -1))


def test_nothing_is_left_behind_in_the_backbone(backbone):
    tokens = torch.zeros(1, SEQ, dtype=torch.long)
    for _ in range(2):
        tapped_trunk(backbone, tokens, None, 3, (0, 1))
    with pytest.raises(RuntimeError, match="amid"), backbone.entering((0, 2)):
        raise RuntimeError("amid")
    assert not any(module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    ("model", "name"),
    [(lambda: RecursiveLM(VOCAB, SEQ, DIM, recursive), "RecursiveLM"), (lambda: SentenceTable(4, 3, 2), "SentenceTable")],
)
def test_a_model_without_layers_of_its_own_has_no_states_between_them(model, name):
    with pytest.raises(ValueError, match=rf"the states that enter a layer of a {name} cannot be read: leave out taps"):
        model().entrance(0)
