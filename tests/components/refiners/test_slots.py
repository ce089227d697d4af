import math

import pytest
import torch

from components.refiners.slots import NAMES, Slots, slot_widths

WIDTHS = {"context": 3, "reasoning": 5, "refinement": 2, "confidence": 4}


@pytest.fixture(params=[None, WIDTHS], ids=["default", "custom"])
def slots(request):
    torch.manual_seed(0)
    module = Slots(16, request.param)
    for p in module.parameters():
        torch.nn.init.normal_(p)
    return module


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 3, 16), torch.randn(2, 3, 16), torch.rand(2, 3, 16)


def test_slots_equal_matrix_products_written_out(slots):
    context, previous, variance = inputs()
    w = {name: (linear.weight, linear.bias) for name, linear in slots.project.items()}
    out = slots(context, previous, variance)
    assert tuple(out) == NAMES
    torch.testing.assert_close(out["context"], context @ w["context"][0].T + w["context"][1])
    torch.testing.assert_close(out["reasoning"], context @ w["reasoning"][0].T + w["reasoning"][1])
    torch.testing.assert_close(out["refinement"], (context - previous) @ w["refinement"][0].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["confidence"], variance @ w["confidence"][0].T + w["confidence"][1])


def test_without_a_previous_context_the_refinement_slot_alone_is_zero(slots):
    context, previous, variance = inputs()
    first, later = slots(context, None, variance), slots(context, previous, variance)
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
    small = {name: 1e-3 * (-1.0) ** torch.arange(width).view(1, 1, width) for name, width in slot_widths(16).items()}
    for name, value in Slots(16).gated(small).items():
        torch.testing.assert_close(value, 0.5 * small[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dim", [16, 64, 768])
def test_default_widths_are_fixed_fractions_of_dim(dim):
    assert list(slot_widths(dim).values()) == [dim / 2, dim / 4, dim / 4, dim / 8]
    assert Slots(dim).total == 9 * dim / 8


def test_custom_widths_come_out_in_the_order_of_the_slots():
    shuffled = dict(reversed(WIDTHS.items()))
    assert list(slot_widths(100, shuffled).items()) == list(WIDTHS.items())
    assert Slots(100, shuffled).total == 14


@pytest.mark.parametrize(
    ("dim", "widths", "message"),
    [
        (100, None, r"got 100 \(context 50, reasoning 25, refinement 25, confidence 12.5\)"),
        (12, None, r"got 12 \("),
        (16, {**WIDTHS, "context": 0}, r"\{'context': 0\}"),
        (16, {**WIDTHS, "reasoning": -2}, r"\{'reasoning': -2\}"),
        (16, {**WIDTHS, "extra": 2}, "extra"),
        (16, {"context": 2}, "context, reasoning, refinement, confidence, got context"),
    ],
)
def test_widths_that_do_not_fit_are_an_error_naming_them(dim, widths, message):
    with pytest.raises(ValueError, match=message):
        slot_widths(dim, widths)
