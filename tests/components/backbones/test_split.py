import pytest
import torch

from components.backbones.split import split_layer, tail_of
from components.backbones.tiny_lm import TinyLM
from components.batch import Batch

LAYERS = 3


@pytest.fixture
def backbone():
    model = TinyLM(vocab=11, seq=6, dim=16, layers=LAYERS, heads=2)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize(("layers", "tail", "expected"), [(12, 2, 10), (12, 0, 12), (12, 12, 0), (0, 0, 0)])
def test_split_layer_leaves_the_tail_above_it(layers, tail, expected):
    assert split_layer(layers, tail) == expected


@pytest.mark.parametrize(("layers", "tail"), [(12, 13), (12, -1)])
def test_a_tail_that_cannot_be_cut_is_an_error_naming_the_numbers(layers, tail):
    with pytest.raises(ValueError, match=rf"{tail} layers .* {layers}\b"):
        split_layer(layers, tail)


@pytest.mark.parametrize("split", range(LAYERS + 1))
def test_a_tail_computes_what_the_backbone_computes_above_the_split(backbone, split):
    tail = tail_of(backbone, split)
    hidden, tokens = torch.randn(2, 6, 16), torch.randint(11, (2, 6))
    ours = tail.states(Batch(tokens, tokens, tokens == 0, tokens.float(), hidden=hidden))
    full, _ = backbone.layers(hidden, None, split, LAYERS)
    assert torch.equal(ours, full)
    assert torch.equal(tail.readout(ours), backbone.readout(full))
    assert torch.equal(tail.embed(tokens), backbone.embed(tokens))


@pytest.mark.parametrize("split", range(LAYERS + 1))
def test_a_tail_holds_the_blocks_from_the_split_on_and_no_others(backbone, split):
    held = {name.split(".")[1] for name in tail_of(backbone, split).state_dict() if name.startswith("blocks.")}
    assert held == {str(i) for i in range(split, LAYERS)}


def test_a_tails_weights_are_copies(backbone):
    tail = tail_of(backbone, 1)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with torch.no_grad():
        for p in tail.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_tail_of_a_tail_is_the_tail_of_the_whole(backbone):
    whole, twice = tail_of(backbone, 2), tail_of(tail_of(backbone, 1), 2)
    assert twice.first_layer == 2
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in twice.state_dict().items())


@pytest.mark.parametrize("split", [-1, LAYERS + 1])
def test_a_split_outside_the_backbone_is_an_error_naming_it(backbone, split):
    with pytest.raises(ValueError, match=rf"0\.\.{LAYERS} .* {split}$"):
        tail_of(backbone, split)
