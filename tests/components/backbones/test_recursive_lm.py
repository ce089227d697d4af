"""A recursive core as a model of its own: embed, recur, read out; and as a backbone that is cut after its last step."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from components.backbones.backbones import build_backbone
from components.backbones.recursive_lm import RecursiveLM
from components.backbones.split import tail_of
from components.refined_lm import RefinedLM
from components.refiners.recursive_core import RecursiveCore
from tests.support import plain
from tests.support.cores import ATTENTION, DIM, HEADS, SEQ, VOCAB, batch, made, recursive, slots

VARIANTS = {
    "steps": partial(recursive, steps=3),
    "cycles": partial(recursive, steps=2, h_cycles=2, halting=True),
    "updates": partial(recursive, steps=1, supervise="updates", rotary=True),
}
every_variant = pytest.mark.parametrize("core", VARIANTS.values(), ids=VARIANTS)


def model_of(core=VARIANTS["steps"], awake=True, dtype=torch.float64):
    model, generator = RecursiveLM(VOCAB, SEQ, DIM, core), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    if awake:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.to(dtype)


def network(w, z, mask):
    """One block of the two-state recursion's f."""
    b = plain.below(w, "core.level.blocks.0.")
    for change in (
        lambda z: F.linear(plain.attention(z, b["attention.qkv.weight"], HEADS, mask), b["out.weight"]),
        lambda z: F.linear(silu_up(z, b["gate_up.weight"]), b["down.weight"]),
    ):
        z = plain.rms_norm(z + change(z), eps=1e-5)
    return z


def silu_up(z, weight):
    gate, up = F.linear(z, weight).chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


# Values


@pytest.mark.parametrize("mask", [None, ATTENTION], ids=["no_mask", "padding"])
def test_logits_of_every_step_equal_a_plain_recomputation_from_the_ids(mask):
    model, given = model_of(), replace(batch(), attention=mask)
    w = plain.bare(model)
    question = w["embedding.weight"][given.tokens] + w["positions"][:SEQ]
    z_H, z_L = w["core.initial_H"], w["core.initial_L"]
    found = list(model.steps(given))
    assert len(found) == 3
    for state in found:
        for _ in range(2):
            z_L = network(w, z_L + z_H + question, mask)
        z_H = network(w, z_H + z_L, mask)
        torch.testing.assert_close(state.hidden, z_H, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.readout(state.hidden), z_H @ w["head.weight"].T, rtol=1e-5, atol=1e-5)


@every_variant
def test_its_steps_are_those_of_the_core_on_the_embedded_ids(core):
    model, given = model_of(core), batch()
    embedded = model.embed(given.tokens)
    expected = list(model.core.refine(embedded, embedded, given.attention))
    assert model.n_steps == len(expected) == model.architecture["layers"] > 1
    for state, other in zip(model.steps(given, statistics=True), expected, strict=True):
        assert torch.equal(state.hidden, other.hidden) and state.statistics
        assert state.halt is other.halt is None or torch.equal(state.halt, other.halt)


def test_short_sequences_take_the_first_positions():
    model = model_of()
    tokens = torch.tensor([[3, 1]])
    assert torch.equal(model.embed(tokens)[0, 1], model.embedding.weight[1] + model.positions[1])


def test_at_the_start_the_question_has_the_size_of_the_states_and_logits_that_of_one():
    model = RecursiveLM(500, 40, 128, recursive)
    model.init_weights(torch.Generator().manual_seed(0))
    question = model.embed(torch.arange(40)[None])
    assert question.square().mean().sqrt().item() == pytest.approx(1, rel=0.03)
    assert model.readout(torch.ones(1, 128)).std().item() == pytest.approx(1, rel=0.1)
    assert model.core.level.blocks[0].out.weight.std().item() == pytest.approx(128**-0.5, rel=0.03)


def test_steps_are_begun_where_states_may_not_change_too():
    """A model of its own answers everywhere: nothing else is there to keep."""
    model, given = model_of(), batch()
    some = torch.arange(SEQ).expand(3, SEQ) % 2 == 0
    for one, other in zip(model.steps(given, positions=some), model.steps(given), strict=True):
        assert torch.equal(one.hidden, other.hidden)


# Cut after the last step


@every_variant
def test_cut_after_the_last_step_it_goes_on_bit_for_bit(core):
    whole, given = model_of(core, dtype=torch.float32), batch()
    tail = tail_of(whole, whole.n_steps)
    hidden = whole.trunk(given.tokens, given.attention, whole.n_steps)
    cached = replace(given, hidden=hidden)
    assert torch.equal(hidden, list(whole.steps(given))[-1].hidden)
    (state,) = tail.steps(cached)
    assert tail.n_steps == 1 and torch.equal(tail.readout(state.hidden), whole.readout(whole.states(given)))
    assert torch.equal(tail.states_and_heads(cached)[0], whole.states_and_heads(given)[0])
    assert torch.equal(tail.embed(given.tokens), whole.embed(given.tokens))
    assert set(tail.state_dict()) == {"embedding.weight", "positions", "head.weight"}


def test_cached_states_take_the_heads_precision():
    tail = tail_of(model_of(), 3).double()
    cached = replace(batch(), hidden=torch.randn(3, SEQ, DIM).bfloat16())
    assert torch.equal(tail.states(cached), cached.hidden.double())


def test_refined_from_its_cached_states_it_is_the_whole_refined_bit_for_bit():
    whole, refiner, given = model_of(dtype=torch.float32), made(slots), batch()
    cached = replace(given, hidden=whole.trunk(given.tokens, given.attention, 3))
    refined = list(RefinedLM(tail_of(whole, 3), refiner).steps(cached))
    assert len(refined) == 4
    for one, other in zip(refined, RefinedLM(whole, refiner).steps(given), strict=True):
        assert torch.equal(one.hidden, other.hidden)


@every_variant
def test_built_from_its_description_it_computes_the_same(core):
    whole, given = model_of(core), batch()
    built = build_backbone(whole.architecture).double()
    assert built.architecture == whole.architecture
    built.load_state_dict(whole.state_dict())
    assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(built.steps(given), whole.steps(given), strict=True))


# Errors


@pytest.mark.parametrize("split", [0, 1, 2, 4, -1])
def test_any_other_split_is_an_error_naming_the_only_one(split):
    given = batch()
    with pytest.raises(ValueError, match=rf"after its last step \(3\) only, got {split}$"):
        model_of().trunk(given.tokens, given.attention, split)


def test_what_was_cut_off_cannot_be_run():
    given = batch()
    with pytest.raises(ValueError, match="was cut after its last step"):
        tail_of(model_of(), 3).trunk(given.tokens, given.attention, 3)


@pytest.mark.parametrize("first_layer", [1, 4, -1])
def test_it_cannot_be_cut_elsewhere(first_layer):
    with pytest.raises(ValueError, match=rf"cut after its last step \(3\) or not at all, got {first_layer}$"):
        RecursiveLM(VOCAB, SEQ, DIM, VARIANTS["steps"], first_layer=first_layer)


def test_other_layers_than_steps_are_an_error_naming_both():
    with pytest.raises(ValueError, match=r"the core takes 3 supervised steps, not 5$"):
        RecursiveLM(VOCAB, SEQ, DIM, VARIANTS["steps"], layers=5)
    assert RecursiveLM(VOCAB, SEQ, DIM, VARIANTS["steps"], layers=3).n_steps == 3


def test_it_has_no_heads_to_show():
    with pytest.raises(ValueError, match="head outputs cannot be a refiner's context"):
        model_of().states_and_heads(batch(), (1,))
    assert model_of().states_and_heads(batch())[1] is None


def test_its_core_stands_alone():
    model = model_of(RecursiveCore)
    assert model.core.architecture["standalone"] and model.core.out is None
