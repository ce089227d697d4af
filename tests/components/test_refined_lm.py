from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from components.backbones.recursive_lm import RecursiveLM
from components.backbones.split import tail_of
from components.backbones.taps import tapped_trunk
from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.refined_lm import RefinedLM
from components.refiners.hybrid import Hybrid
from components.refiners.recursive_core import RecursiveCore
from components.refiners.refiner import SlotRefiner
from components.refiners.tapped import Tapped

LAYERS = 3


def make(seed=0, core=SlotRefiner, **options):
    g = torch.Generator().manual_seed(seed)
    backbone = TinyLM(vocab=11, seq=6, dim=16, layers=LAYERS, heads=2)
    backbone.init_weights(g)
    refiner = core(16, **{"heads": 2, "steps": 3, **options})
    refiner.init_weights(1.5, g)
    return RefinedLM(backbone, refiner)


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


@pytest.mark.parametrize("split", range(1, LAYERS + 1))
def test_a_tail_fed_by_the_trunk_gives_the_full_models_logits_bit_for_bit(batch, split):
    full = awake(make())
    tail = RefinedLM(tail_of(full.backbone, split), full.refiner)
    hidden = full.backbone.trunk(batch.tokens, batch.attention, split)
    cached = Batch(batch.tokens, batch.targets, batch.masked, batch.weights, batch.attention, hidden)
    assert torch.equal(tail.readout(tail.states(cached)), full.readout(full.states(batch)))


def test_heads_of_the_backbone_reach_a_refiner_that_reads_them(batch):
    model = awake(make(context_layers=(2, 1)))
    x, heads = model.backbone.states_and_heads(batch, (2, 1))
    expected = model.refiner.refine(x, model.backbone.embed(batch.tokens), batch.attention, heads=heads)
    for ours, plain in zip(model.steps(batch), expected, strict=True):
        assert torch.equal(ours.hidden, plain.hidden)


def test_layers_may_be_counted_from_the_last(batch):
    model, other = make(context_layers=(2, 1)), make(context_layers=(-1, -2))
    other.load_state_dict(awake(model).state_dict())
    assert torch.equal(other.states(batch), model.states(batch))


@pytest.mark.parametrize(("split", "held"), [(2, r"\[2\]"), (LAYERS, r"\[\]")])
def test_layers_below_the_split_cannot_be_read_and_are_named(split, held):
    whole = make(context_layers=(2, 1))
    with pytest.raises(ValueError, match=rf"backbone layer [12], .* above the split are layers {held}: .*extract.run.tail_layers"):
        RefinedLM(tail_of(whole.backbone, split), whole.refiner)


@pytest.mark.parametrize(("asked", "told"), [(3, 3), (-4, -1)])
def test_layers_that_the_backbone_does_not_have_are_named(asked, told):
    with pytest.raises(ValueError, match=rf"backbone layer {told}, .* are layers \[0, 1, 2\]"):
        make(context_layers=(0, asked))


def test_a_refiner_that_routes_is_told_the_backbones_confidence(batch):
    model = awake_hybrid()
    masked = replace(batch, masked=batch.masked & (torch.arange(6) % 2 == 0))
    x = model.backbone.states(masked)
    confidence = model.backbone.readout(x).softmax(-1).amax(-1).masked_fill(~masked.masked, 1.0)
    ordered = confidence[masked.masked].sort().values
    model.refiner.threshold = ordered[len(ordered) // 2 - 1 :][:2].mean().item()  # some chunks are below, some are not
    expected = model.refiner.refine(x, model.backbone.embed(masked.tokens), masked.attention, confidence=confidence)
    for ours, plain in zip(model.steps(masked), expected, strict=True):
        assert torch.equal(ours.hidden, plain.hidden)
        changed = (ours.hidden != x).any(-1)[masked.attention]
        assert changed.any() and not changed.all()


def awake_hybrid():
    model = make(core=lambda dim, **_: Hybrid(dim, partial(SlotRefiner, heads=2, steps=3), chunk=2))
    torch.manual_seed(1)
    torch.nn.init.normal_(model.refiner.doubtful.delta_out.weight)
    return model


# Taps


def tapped(layers, wake=True):
    """A refiner that also reads the states which enter these layers; with weights that let it say something of them."""
    model = make(core=lambda dim, **given: Tapped(dim, partial(SlotRefiner, **given), layers))
    if wake:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.refiner.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def test_at_the_start_taps_say_nothing(batch):
    model, plain = tapped((0, 2), wake=False), make()
    for ours, expected in zip(model.steps(batch), plain.steps(batch), strict=True):
        assert torch.equal(ours.hidden, expected.hidden)


def test_states_of_the_backbones_layers_reach_a_refiner_that_reads_them(batch):
    model = tapped((2, 0, -2))
    entering = {layer: model.backbone.trunk(batch.tokens, batch.attention, layer % LAYERS) for layer in (2, 0, -2)}
    x = model.backbone.states(batch)
    expected = model.refiner.refine(x, model.backbone.embed(batch.tokens), batch.attention, taps=entering)
    for ours, plain in zip(model.steps(batch), expected, strict=True):
        assert torch.equal(ours.hidden, plain.hidden)


@pytest.mark.parametrize("layers", [(0,), (2, 0), (0, 1, 2), (-1, -3)])
@pytest.mark.parametrize("split", range(1, LAYERS + 1))
def test_a_tail_reads_taps_below_it_from_the_batch_and_those_above_as_they_run(batch, split, layers):
    full = tapped(layers)
    tail = RefinedLM(tail_of(full.backbone, split), full.refiner)
    below = tuple(sorted({layer % LAYERS for layer in layers} & set(range(split))))
    assert set(tail.stored_taps) == set(below) and full.stored_taps == ()
    assert set(tail.live_taps) == {layer % LAYERS for layer in layers} - set(below)
    states = tapped_trunk(full.backbone, batch.tokens, batch.attention, split, below)
    cached = batch.entered(states, below)
    assert torch.equal(tail.readout(tail.states(cached)), full.readout(full.states(batch)))
    tail.check_taps((*below, 7))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ((), r"that enter layer 0, below the split, and those of no layer come .* set TAPS .* to \[0, 1\]$"),
        ((1,), r"that enter layer 0, below the split, and those of \[1\] come"),
        ((0, 2), r"that enter layer 1, below the split, and those of \[0, 2\] come"),
    ],
)
def test_taps_that_do_not_come_with_the_batches_are_named(stored, message):
    whole = tapped((0, 1, 2))
    tail = RefinedLM(tail_of(whole.backbone, 2), whole.refiner)
    with pytest.raises(ValueError, match=message):
        tail.check_taps(stored)
    whole.check_taps(stored)


@pytest.mark.parametrize(
    ("layers", "message"), [((3,), "0 to 2.*got 3"), ((0, -4), "0 to 2.*got -4"), ((1, -2), r"layer 1 twice in \[1, -2\]")]
)
def test_taps_that_the_backbone_does_not_have_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        tapped(layers)


def test_taps_of_a_backbone_without_layers_of_its_own_are_refused():
    backbone = RecursiveLM(11, 6, 16, partial(RecursiveCore, heads=2, blocks=1, steps=2))
    with pytest.raises(ValueError, match="a layer of a RecursiveLM cannot be read: leave out taps"):
        RefinedLM(backbone, Tapped(16, partial(SlotRefiner, heads=2), (0,)))


def test_the_head_and_the_steps_are_those_of_its_parts():
    model = make(steps=5)
    assert model.head is model.backbone.head and model.n_steps == 5
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "refiner"}


def test_widths_that_differ_are_an_error_naming_both():
    with pytest.raises(ValueError, match=r"\b16\b.*\b32\b"):
        RefinedLM(TinyLM(vocab=11, seq=6, dim=32, layers=1, heads=2), SlotRefiner(16, heads=2))


def test_more_steps_are_taken_once_they_are_set(batch):
    model = awake(make())
    expected = [state.hidden for state in model.steps(batch, steps=5)]
    model.set_steps(5)
    assert model.n_steps == model.refiner.n_steps == 5 and torch.equal(model.states(batch), expected[-1])
