"""The control without recursion: what it computes, and that it is as large as what it controls for."""

import pytest
import torch
from torch.nn import functional as F

from components.refiners.adapter import Adapter
from components.refiners.refiner import SlotRefiner
from tests.support import plain
from tests.support.cores import ATTENTION, DIM, HEADS, RMS, SEQ, begun, inputs, made, states


def size(core):
    return sum(p.numel() for p in core.parameters())


def block(w, hidden, given, mask):
    """The residual update of one pre-norm transformer block over norm(hidden) + what is injected."""
    u = plain.layer_norm(hidden, w["state_norm.weight"])
    u = u + plain.injection(plain.below(w, "injection."), given["x"], given["embedding"])
    heads = plain.attention(plain.rms_norm(u, w["attention_norm.weight"]), w["attention.qkv.weight"], HEADS, mask)
    u = u + F.linear(heads, w["out.weight"])
    wide = plain.gelu(F.linear(plain.rms_norm(u, w["mlp_norm.weight"]), w["up.weight"], w["up.bias"]))
    return hidden + RMS * F.linear(wide, w["down.weight"], w["down.bias"])


@pytest.mark.parametrize("mask", [None, ATTENTION], ids=["no_mask", "padding"])
def test_its_step_equals_a_plain_transformer_block(mask):
    core = made(lambda dim: Adapter(dim, HEADS)).double()
    given = inputs(core, dtype=torch.float64)
    expected = block(plain.bare(core), given["x"], given, mask)
    (state,) = states(core, mask, statistics=True, **given)
    torch.testing.assert_close(state.hidden, expected, rtol=1e-5, atol=1e-5)
    moved = (expected - given["x"])[torch.ones(3, SEQ, dtype=torch.bool) if mask is None else mask]
    assert state.statistics["delta"].item() == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-4)


def test_begun_at_other_states_the_injection_stays_x():
    core = made(lambda dim: Adapter(dim, HEADS)).double()
    given = inputs(core, dtype=torch.float64)
    start = torch.randn(3, SEQ, DIM, generator=torch.Generator().manual_seed(1)).double()
    condition, _, layout = begun(core, given)
    found = core.step(0, core.initial_carry(start, condition), condition, layout).hidden
    torch.testing.assert_close(found, block(plain.bare(core), start, given, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dim", "heads"), [(16, 2), (16, 4), (24, 4), (64, 4), (128, 8)])
def test_it_is_as_large_as_the_slot_refiner_to_within_one_unit(dim, heads):
    wanted = size(SlotRefiner(dim, heads))
    core = Adapter(dim, heads)
    assert core.architecture["parameters"] == wanted
    assert 0 <= wanted - size(core) < 2 * dim + 1


@pytest.mark.parametrize("wanted", [5000, 5032, 5033, 20000])
def test_it_is_as_large_as_asked_for(wanted):
    assert 0 <= wanted - size(Adapter(DIM, HEADS, parameters=wanted)) < 2 * DIM + 1


def test_there_is_one_step_and_it_reads_no_heads():
    core = Adapter(DIM)
    assert core.n_steps == 1 and core.context_layers == () and not core.needs_confidence


def test_too_few_parameters_are_an_error_naming_the_least():
    smallest = size(Adapter(DIM, parameters=5000)) - (Adapter(DIM, parameters=5000).up.out_features - 1) * (2 * DIM + 1)
    assert size(Adapter(DIM, parameters=smallest)) == smallest
    with pytest.raises(ValueError, match=rf"an adapter of width {DIM} needs at least {smallest} parameters, got {smallest - 1}$"):
        Adapter(DIM, parameters=smallest - 1)
