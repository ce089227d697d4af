import math

import pytest
import torch

from components.refiners.slots import Slot, Slots, four_slots

NAMES = ("context", "reasoning", "refinement", "confidence")
OTHERS = [("context", "context", 3), ("reasoning", "attention", 5), ("refinement", "change", 2), ("confidence", "variance", 4)]


@pytest.fixture(params=[None, OTHERS], ids=["default", "custom"])
def slots(request):
    torch.manual_seed(0)
    module = Slots(16, request.param)
    for p in module.parameters():
        torch.nn.init.normal_(p)
    return module


def inputs():
    """Sources, and the attention of the previous step."""
    torch.manual_seed(1)
    context, previous, variance = torch.randn(2, 3, 16), torch.randn(2, 3, 16), torch.rand(2, 3, 16)
    return {"attention": context, "context": context, "variance": variance}, previous


def test_slots_equal_matrix_products_written_out(slots):
    sources, previous = inputs()
    context, variance = sources["attention"], sources["variance"]
    w = {name: (linear.weight, linear.bias) for name, linear in slots.project.items()}
    out = slots(sources, previous)
    assert tuple(out) == NAMES
    torch.testing.assert_close(out["context"], context @ w["context"][0].T + w["context"][1])
    torch.testing.assert_close(out["reasoning"], context @ w["reasoning"][0].T + w["reasoning"][1])
    torch.testing.assert_close(out["refinement"], (context - previous) @ w["refinement"][0].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["confidence"], variance @ w["confidence"][0].T + w["confidence"][1])


def test_without_a_previous_context_the_refinement_slot_alone_is_zero(slots):
    sources, previous = inputs()
    first, later = slots(sources, None), slots(sources, previous)
    assert first["refinement"].abs().max() == 0
    assert all(torch.equal(first[name], later[name]) for name in ("context", "reasoning", "confidence"))


def test_gated_slots_are_normed_with_epsilon_one_and_multiplied_by_their_gate(slots):
    values = slots(*inputs())
    out = slots.gated(values)
    for i, name in enumerate(NAMES):
        gate = 1 / (1 + math.exp(-slots.gate_logits[i].item()))
        centred = values[name] - values[name].mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1.0).sqrt()
        torch.testing.assert_close(out[name], gate * normed * slots.norms[name].weight)


def test_gates_are_one_half_at_the_start():
    assert Slots(16).gates().tolist() == [0.5] * 4


def test_a_small_slot_keeps_its_size_at_the_start():
    small = {slot.name: 1e-3 * (-1.0) ** torch.arange(slot.width).view(1, 1, slot.width) for slot in four_slots(16)}
    for name, value in Slots(16).gated(small).items():
        torch.testing.assert_close(value, 0.5 * small[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dim", [16, 64, 768])
def test_the_default_slots_are_the_four_at_fixed_fractions_of_dim(dim):
    assert tuple(slot.name for slot in four_slots(dim)) == NAMES
    assert [slot.width for slot in four_slots(dim)] == [dim / 2, dim / 4, dim / 4, dim / 8]
    assert [slot.source for slot in four_slots(dim)] == ["context", "attention", "change", "variance"]
    assert Slots(dim).total == 9 * dim / 8


def test_slots_of_ones_own_keep_their_order_names_and_sources():
    slots = Slots(100, [Slot("mood", "state", 3), ("doubt", "variance", 2), Slot("drift", "change", 7)], context_dim=50)
    assert slots.widths == {"mood": 3, "doubt": 2, "drift": 7} and slots.total == 12 and slots.weighing == "drift"
    state, attention = torch.randn(2, 3, 100), torch.randn(2, 3, 100)
    out = slots({"attention": attention, "state": state, "variance": state.exp()}, None)
    torch.testing.assert_close(out["mood"], slots.project["mood"](state))
    torch.testing.assert_close(out["doubt"], slots.project["doubt"](state.exp()))
    assert tuple(out) == ("mood", "doubt", "drift") and out["drift"].abs().max() == 0 and len(slots.gates()) == 3
    assert {name: linear.in_features for name, linear in slots.project.items()} == {"mood": 100, "doubt": 100, "drift": 100}


def test_the_width_of_the_context_is_that_of_its_source_alone():
    slots = Slots(16, OTHERS, context_dim=32)
    assert [linear.in_features for linear in slots.project.values()] == [32, 16, 16, 16]


@pytest.mark.parametrize(
    ("dim", "slots", "message"),
    [
        (100, None, r"got 100 \(context 50, reasoning 25, refinement 25, confidence 12.5\)"),
        (12, None, r"got 12 \("),
        (16, [*OTHERS, ("mood", "state", 1)], "at least 2 wide .* got 1 for 'mood'"),
        (16, [*OTHERS, ("mood", "state", -2)], "got -2 for 'mood'"),
        (16, [*OTHERS, ("context", "state", 2)], "got 'context' twice"),
        (16, [*OTHERS, ("mo.od", "state", 2)], "plain word .* got 'mo.od'"),
        (16, [*OTHERS, ("keys", "state", 2)], "plain word .* got 'keys'"),
        (
            16,
            [*OTHERS, ("mood", "hormones", 2)],
            "'mood' must be one of context, .*, backbone or 'tap' and a layer's number, got 'hormones'",
        ),
        (16, [*OTHERS, ("mood", "tap", 2)], "'tap' and a layer's number, got 'tap'"),
        (16, [*OTHERS, ("mood", "tap 1.5", 2)], "got 'tap 1.5'"),
        (16, [*OTHERS, ("mood", "tap --1", 2)], "got 'tap --1'"),
        (16, [*OTHERS, ("mood", "tap 10 ", 2)], "got 'tap 10 '"),
        (16, OTHERS[:1], "at least 2 slots, .* got 1"),
    ],
)
def test_slots_that_cannot_be_built_are_an_error_naming_them(dim, slots, message):
    with pytest.raises(ValueError, match=message):
        Slots(dim, slots)
