"""States of several layers, fused: the plain formula, and no more than a zero at first."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from components.refiners.core import Layout
from components.refiners.tapped import Tapped
from tests.support.cores import ATTENTION, CORES, DIM, RMS, begun, inputs, made, mlp, slots, states, taps
from tests.support.plain import bare, layer_norm

INNER = ["slots", "slots_literal", "recursive", "mlp", "adapter", "cascade", "hybrid", "chunk_masking"]


@pytest.fixture(params=INNER)
def pair(request):
    """A refiner behind three taps, and itself with the same weights."""
    outer = made(partial(Tapped, refiner=CORES[request.param], layers=(5, 0, -3)))
    return outer, outer.refiner


def test_states_are_those_of_the_refiner_that_starts_and_sees_otherwise(pair):
    outer, inner = (core.double() for core in pair)
    given, weights = inputs(outer, dtype=torch.float64), bare(outer)
    normed = [layer_norm(tap, weights[f"norms.{i}.weight"]) for i, tap in enumerate(taps(outer, given).values())]
    fused = F.linear(torch.cat(normed, -1), weights["project.weight"]) / (3 * DIM) ** 0.5
    embedding = given["embedding"] + given["embedding"].norm(dim=-1, keepdim=True) / DIM**0.5 * fused
    plain = {name: value for name, value in given.items() if name != "taps"}
    condition, _, layout = begun(inner, plain | {"embedding": embedding}, Layout(ATTENTION))
    carry = inner.initial_carry(given["x"] + float(outer.hidden_rms) * fused, condition)
    for number, ours in enumerate(states(outer, ATTENTION, **given)):
        state = inner.step(number, carry, condition, layout)
        torch.testing.assert_close(ours.hidden, state.hidden, rtol=1e-9, atol=1e-9)
        carry = state.carry


def test_as_long_as_the_projection_is_zero_it_is_the_refiner_bit_for_bit(pair):
    outer, inner = pair
    torch.nn.init.zeros_(outer.project.weight)
    given = inputs(outer)
    plain = {name: value for name, value in given.items() if name != "taps"}
    for ours, expected in zip(states(outer, ATTENTION, **given), states(inner, ATTENTION, **plain), strict=True):
        assert torch.equal(ours.hidden, expected.hidden)


def test_the_projection_starts_at_zero_and_the_first_loss_moves_it():
    core = made(partial(Tapped, refiner=slots, layers=(1, 2)), awake=False)
    assert not core.project.weight.any() and float(core.hidden_rms) == pytest.approx(RMS)
    states(core, **inputs(core))[0].hidden.square().sum().backward()
    assert core.project.weight.grad.any()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_tap_counts_whatever_its_size(place):
    core = made(partial(Tapped, refiner=mlp, layers=(0, 1, 2)))
    given = inputs(core)
    parts = list(given["taps"].split(DIM, -1))
    plain = states(core, **given)[-1].hidden
    for change, same in ((lambda tap: 1000 * tap, True), (lambda tap: tap.flip(-1), False)):
        changed = torch.cat([change(tap) if i == place else tap for i, tap in enumerate(parts)], -1)
        other = states(core, **given | {"taps": changed})[-1].hidden
        assert torch.allclose(other, plain, atol=1e-2) == same


def test_taps_of_the_refiner_within_are_read_too():
    low = [("low", "tap 0", 4), ("moved", "change", 4), ("high", "tap 3", 4)]
    core = Tapped(DIM, partial(slots, slots=low), layers=(3, 1))
    assert core.taps == (3, 1, 0) and core.refiner.taps == (0, 3)


def test_a_slot_of_a_tap_is_a_projection_of_its_normed_states():
    core = made(CORES["slots_of_taps"])
    given = inputs(core)
    scaled = replace_taps(core, given, lambda tap: 7 * tap)
    for ours, other in zip(states(core, **given), states(core, **scaled), strict=True):
        torch.testing.assert_close(ours.hidden, other.hidden, rtol=1e-4, atol=1e-4)
    condition, _, _ = begun(core, given)
    for source, tap in (("tap 0", 0), ("tap -1", -1)):
        expected = taps(core, given)[tap]
        torch.testing.assert_close(condition[source], expected / expected.square().mean(-1, keepdim=True).sqrt())


def replace_taps(core, given, change):
    return given | {"taps": torch.cat([change(tap) for tap in taps(core, given).values()], -1)}


def test_no_layer_is_an_error_that_says_what_to_set():
    with pytest.raises(ValueError, match=r"^Tapped reads the states of no layer: set TAPS to layers below the split"):
        Tapped(DIM, slots, ())


def test_statistics_and_positions_are_the_refiners_own(pair):
    outer, _ = pair
    given, positions = inputs(outer), torch.arange(6).expand(3, 6) % 2 == 0
    for state in states(outer, ATTENTION, positions=positions, statistics=True, **given):
        assert torch.equal(state.hidden[~positions], given["x"][~positions]) and state.statistics
