import math
from itertools import pairwise

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.refiners.core import Layout
from tests.support.plain import attention

LAYERS = 3
ATTENTION = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]


@pytest.fixture
def model():
    lm = TinyLM(vocab=11, seq=8, dim=16, layers=LAYERS, heads=2)
    lm.init_weights(torch.Generator().manual_seed(0))
    for p in lm.parameters():  # large enough that every block matters
        p.data.mul_(3)
    return lm


@pytest.fixture
def batch():
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))
    return Batch(tokens, tokens, ATTENTION, ATTENTION.float(), ATTENTION)


def from_hidden(batch, hidden):
    return Batch(batch.tokens, batch.targets, batch.masked, batch.weights, batch.attention, hidden)


def test_embedding_is_a_look_up_plus_position(model, batch):
    for b in range(3):
        for s in range(6):
            expected = model.embedding.weight[batch.tokens[b, s]] + model.positions[s]
            assert torch.equal(model.embed(batch.tokens)[b, s], expected)


def test_states_equal_the_blocks_run_in_order(model, batch):
    x = model.embed(batch.tokens)
    for i in range(LAYERS):
        x = model.blocks[str(i)](x, Layout(batch.attention).visible(x))
    assert torch.equal(model.states(batch), x)


@pytest.mark.parametrize("split", range(LAYERS + 1))
def test_trunk_then_tail_equals_the_full_forward_bit_for_bit(model, batch, split):
    hidden = model.trunk(batch.tokens, batch.attention, split)
    assert torch.equal(model.layers(hidden, batch.attention, split, LAYERS)[0], model.states(batch))


@pytest.mark.parametrize("chosen", [(), (0,), (2,), (2, 0), (0, 1, 2)])
def test_heads_of_chosen_layers_come_side_by_side_as_their_attention_made_them(model, batch, chosen):
    x, expected = model.embed(batch.tokens), {}
    for i in range(LAYERS):
        block = model.blocks[str(i)]
        expected[i] = attention(block.attention_norm(x), block.attention.qkv.weight, 2, ATTENTION)
        x = block(x, Layout(ATTENTION).visible(x))
    states, heads = model.states_and_heads(batch, chosen)
    assert torch.equal(states, x)
    if not chosen:
        assert heads is None
    else:
        assert heads.shape == (3, 6, 16 * len(chosen))
        torch.testing.assert_close(heads, torch.cat([expected[i] for i in chosen], -1), rtol=1e-4, atol=1e-5)


def test_heads_from_cached_states_are_those_from_tokens(model, batch):
    cached = from_hidden(batch, model.trunk(batch.tokens, ATTENTION, 1))
    lm = TinyLM(vocab=11, seq=8, dim=16, layers=LAYERS, heads=2, first_layer=1)
    lm.load_state_dict(model.state_dict(), strict=False)
    for one, other in zip(lm.states_and_heads(cached, (2, 1)), model.states_and_heads(batch, (2, 1)), strict=True):
        assert torch.equal(one, other)


def test_trunk_of_no_layers_is_the_embedding(model, batch):
    assert torch.equal(model.trunk(batch.tokens, batch.attention, 0), model.embed(batch.tokens))


def test_every_block_changes_the_states(model, batch):
    cuts = [model.trunk(batch.tokens, batch.attention, split) for split in range(LAYERS + 1)]
    assert all((a - b).abs().max() > 1e-2 for a, b in pairwise(cuts))


def test_readout_is_the_head_after_an_rms_norm(model):
    model.norm.weight.data.uniform_(0.5, 2)
    rows = torch.randn(5, 16)
    normed = rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt() * model.norm.weight
    torch.testing.assert_close(model.readout(rows), normed @ model.head.weight.T)


def test_padding_does_not_influence_valid_positions(model, batch):
    other = Batch(
        torch.where(ATTENTION, batch.tokens, (batch.tokens + 3) % 11), batch.targets, batch.masked, batch.weights, batch.attention
    )
    assert torch.equal(model.states(other)[ATTENTION], model.states(batch)[ATTENTION])


def test_a_padded_sequence_has_the_states_of_the_short_one(model, batch):
    padded = model.states(batch)
    for row, length in enumerate(ATTENTION.sum(1).tolist()):
        short = model.trunk(batch.tokens[row : row + 1, :length], None, LAYERS)
        torch.testing.assert_close(padded[row : row + 1, :length], short, rtol=1e-4, atol=1e-5)


def test_without_an_attention_mask_every_position_is_seen(model, batch):
    changed = batch.tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    difference = model.trunk(batch.tokens, None, LAYERS) - model.trunk(changed, None, LAYERS)
    assert (difference.abs().sum(-1) > 0).all()


def test_steps_yields_the_states_once(model, batch):
    (state,) = model.steps(batch)
    assert torch.equal(state.hidden, model.states(batch))
    assert state.penalty is None


@pytest.mark.parametrize("first_layer", range(LAYERS + 1))
def test_a_model_holds_its_blocks_from_first_layer_on_only(first_layer):
    lm = TinyLM(vocab=11, seq=8, dim=16, layers=LAYERS, heads=2, first_layer=first_layer)
    assert set(lm.blocks) == {str(i) for i in range(first_layer, LAYERS)}
    whole = TinyLM(vocab=11, seq=8, dim=16, layers=LAYERS, heads=2)
    block = 2 * 16 + (3 + 1 + 4 + 4) * 16 * 16  # two norms; qkv, out, up, down
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in lm.parameters()) == first_layer * block


@pytest.mark.parametrize("first_layer", [1, 2, LAYERS])
def test_a_tail_model_runs_from_cached_states_of_any_precision(model, batch, first_layer):
    lm = TinyLM(vocab=11, seq=8, dim=16, layers=LAYERS, heads=2, first_layer=first_layer)
    lm.load_state_dict(model.state_dict(), strict=False)
    hidden = model.trunk(batch.tokens, batch.attention, first_layer)
    assert torch.equal(lm.states(from_hidden(batch, hidden)), model.states(batch))
    rounded, _ = model.layers(hidden.half().float(), batch.attention, first_layer, LAYERS)
    assert torch.equal(lm.states(from_hidden(batch, hidden.half())), rounded)


def test_a_tail_model_cannot_run_from_tokens(batch):
    lm = TinyLM(vocab=11, seq=8, dim=16, layers=LAYERS, heads=2, first_layer=2)
    with pytest.raises(ValueError, match=r"holds layers 2\.\.2; it cannot run layers 0\.\.2"):
        lm.states(batch)


@pytest.mark.parametrize("first_layer", [-1, LAYERS + 1])
def test_a_first_layer_outside_the_model_is_an_error_naming_it(first_layer):
    with pytest.raises(ValueError, match=rf"0\.\.{LAYERS} .* {first_layer}$"):
        TinyLM(vocab=11, seq=8, dim=16, layers=LAYERS, heads=2, first_layer=first_layer)


def test_heads_that_do_not_divide_dim_are_an_error_naming_them():
    with pytest.raises(ValueError, match=r"dim 16 and heads 3\b"):
        TinyLM(vocab=11, seq=8, dim=16, layers=1, heads=3)


def test_initial_weights_have_the_documented_spread_and_follow_the_generator():
    models = [TinyLM(vocab=300, seq=200, dim=64, layers=2, heads=2) for _ in range(3)]
    for lm, seed in zip(models, (0, 0, 1), strict=True):
        lm.init_weights(torch.Generator().manual_seed(seed))
    first, again, other = (lm.state_dict() for lm in models)
    expected = {
        "embedding.weight": 0.02,
        "positions": 0.02,
        "head.weight": 1 / math.sqrt(64),
        "blocks.1.out.weight": 0.02 / math.sqrt(4),
        "blocks.0.down.weight": 0.02 / math.sqrt(4),
    }
    for name, std in expected.items():
        assert first[name].std().item() == pytest.approx(std, rel=0.05)
        assert not torch.equal(first[name], other[name])
    assert all(torch.equal(first[name], again[name]) for name in first)
