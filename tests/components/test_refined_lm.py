from itertools import pairwise

import pytest
import torch

from components.batch import Batch
from components.recursion import one_step_gradient
from components.refined_lm import RefinedLM
from components.refiner import SlotRefiner
from components.split import tail_of
from components.tiny_lm import TinyLM

LAYERS = 3


def make(seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    backbone = TinyLM(vocab=11, seq=6, dim=16, layers=LAYERS, heads=2)
    backbone.init_weights(g)
    refiner = SlotRefiner(16, heads=2, steps=3)
    refiner.init_weights(1.5, g)
    return RefinedLM(backbone, refiner, **options)


def awake(model):
    """Wake the zero output layer, so that the refiner changes its states."""
    torch.manual_seed(1)
    torch.nn.init.normal_(model.refiner.delta_out.weight)
    return model


@pytest.fixture
def batch():
    torch.manual_seed(2)
    tokens = torch.randint(11, (4, 6))
    attention = torch.arange(6) < torch.tensor([6, 5, 3, 6])[:, None]
    return Batch(tokens, tokens, attention, attention.float(), attention)


def test_at_the_start_logits_equal_the_backbones_bit_for_bit_at_every_step(batch):
    model = make()
    expected = model.backbone.readout(model.backbone.states(batch))
    states = list(model.steps(batch))
    assert len(states) == 3
    for state in states:
        assert torch.equal(model.readout(state.hidden), expected)


def test_once_awake_the_refiner_changes_the_states_at_every_step(batch):
    model = awake(make())
    hidden = [model.backbone.states(batch), *(state.hidden for state in model.steps(batch))]
    for before, after in pairwise(hidden):
        assert not torch.allclose(before, after)


def test_readout_is_the_head_after_the_norm_of_the_backbone():
    model, rows = make(), torch.randn(5, 16)
    normed = rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(model.readout(rows), normed @ model.backbone.head.weight.T)


def test_states_equal_the_last_of_steps(batch):
    model = awake(make())
    assert torch.equal(model.states(batch), list(model.steps(batch))[-1].hidden)


def test_steps_refines_the_backbones_states_with_its_embeddings(batch):
    model = awake(make())
    embedding = model.backbone.embedding.weight[batch.tokens] + model.backbone.positions
    expected = model.refiner.refine(model.backbone.states(batch), embedding, batch.attention, steps=2)
    states = list(model.steps(batch, steps=2))
    assert len(states) == 2
    for ours, plain in zip(states, expected, strict=True):
        assert torch.equal(ours.hidden, plain.hidden)


def test_positions_that_may_not_change_keep_the_backbones_logits(batch):
    model = awake(make())
    positions = torch.rand(4, 6) < 0.5
    before = model.backbone.states(batch)
    for state in model.steps(batch, positions=positions):
        assert torch.equal(state.hidden[~positions], before[~positions])
        assert (state.hidden[positions] != before[positions]).any(-1).all()


@pytest.mark.parametrize("asked", [False, True])
def test_statistics_are_measured_only_on_request(batch, asked):
    assert all(bool(state.statistics) == asked for state in make().steps(batch, statistics=asked))


def test_the_recursion_given_decides_where_the_gradient_flows(batch):
    full, detached = awake(make()), awake(make(recursion=one_step_gradient))
    gradients = [
        torch.autograd.grad(model.states(batch).square().sum(), model.refiner.delta_out.weight)[0] for model in (full, detached)
    ]
    assert torch.equal(full.states(batch), detached.states(batch))
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("split", range(1, LAYERS + 1))
def test_a_tail_fed_by_the_trunk_gives_the_full_models_logits_bit_for_bit(batch, split):
    full = awake(make())
    tail = RefinedLM(tail_of(full.backbone, split), full.refiner)
    hidden = full.backbone.trunk(batch.tokens, batch.attention, split)
    cached = Batch(batch.tokens, batch.targets, batch.masked, batch.weights, batch.attention, hidden)
    assert torch.equal(tail.readout(tail.states(cached)), full.readout(full.states(batch)))


def test_widths_that_differ_are_an_error_naming_both():
    with pytest.raises(ValueError, match=r"\b16\b.*\b32\b"):
        RefinedLM(TinyLM(vocab=11, seq=6, dim=32, layers=1, heads=2), SlotRefiner(16, heads=2))
