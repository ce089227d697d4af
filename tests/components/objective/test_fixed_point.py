"""The price of not having settled: that of the formula, on the last supervised step alone, and nothing where nothing moves."""

import math

import pytest
import torch
from torch.nn import functional as F

from components.objective.activations import checkpoint
from components.objective.fixed_point import FixedPoint
from components.objective.objective import Objective
from components.objective.supervision import linear_decay
from components.recursion import one_step_gradient
from tests.support.cores import ATTENTION, batch, model_of

SEQUENCES = 7
STATES = {
    "slots": ["hidden"],
    "slots_added": ["hidden"],
    "recursive": ["z_H", "z_L"],
    "mlp": ["hidden"],
    "standalone": ["z_H", "z_L"],
}


def plain(model, of, weight, states):
    """Weighted losses and the price, in one graph, a sequence at a time."""
    condition, carry, layout = model.begin(of)
    total, weights = 0.0, linear_decay(model.n_steps)
    for number, share in enumerate(weights):
        state = model.step(number, carry, condition, layout)
        nll = F.cross_entropy(model.readout(state.hidden).transpose(1, 2), of.targets, reduction="none")
        term = (nll * of.weights).sum()
        if number == len(weights) - 1:
            for row, there in enumerate(ATTENTION):
                for name in states:
                    now, before = state.carry[name][row][there], carry[name][row][there]
                    term = term + weight * (now - before).norm() ** 2 / now.detach().norm() ** 2
        total, carry = total + share * term / SEQUENCES, state.carry
    return total


def gradients(model, objective, of):
    model.zero_grad()
    supervised = objective.gradient(model, of, sequences=SEQUENCES, key=3)
    return supervised, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("weight", [0.3, 4.0])
@pytest.mark.parametrize("name", STATES)
def test_the_gradient_is_that_of_the_formula(name, weight):
    model, of = model_of(name), batch()
    supervised, found = gradients(model, Objective(model.n_steps, settling=FixedPoint(weight)), of)
    total = plain(model, of, weight, STATES[name])
    named = {n: p for n, p in model.named_parameters() if n in found}
    expected = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    assert supervised.total.item() == pytest.approx(total.item(), rel=1e-6)
    largest = max(value.abs().max() for value in expected.values())
    assert all((found[n] - value).abs().max() <= 1e-9 * largest for n, value in expected.items())
    free, _ = gradients(model, Objective(model.n_steps), of)
    assert all(torch.equal(a, b) for a, b in zip(free.losses, supervised.losses, strict=True))  # losses are told without it
    assert supervised.total > free.total


def test_policies_agree_in_every_bit_and_cuts_leave_the_value():
    model, of = model_of("slots"), batch()
    stored = gradients(model, Objective(3, settling=FixedPoint()), of)
    again = gradients(model, Objective(3, settling=FixedPoint(), activations=checkpoint), of)
    assert torch.equal(stored[0].total, again[0].total) and all(torch.equal(stored[1][n], again[1][n]) for n in stored[1])
    assert torch.equal(gradients(model, Objective(3, settling=FixedPoint(), bptt=one_step_gradient), of)[0].total, stored[0].total)


def test_a_step_that_moves_nothing_is_free_and_its_gradient_finite():
    """A refiner as it begins: its output layer says nothing."""
    model, of = model_of("slots"), batch()
    torch.nn.init.zeros_(model.refiner.delta_out.weight)
    torch.nn.init.zeros_(model.refiner.delta_out.bias)
    supervised, found = gradients(model, Objective(3, settling=FixedPoint(5.0)), of)
    assert torch.equal(supervised.total, gradients(model, Objective(3), of)[0].total)
    assert all(value.isfinite().all() for value in found.values())


def test_the_price_is_for_recursions_whose_carry_is_one_set_of_states():
    assert Objective(1, settling=FixedPoint()).settling is None
    with pytest.raises(ValueError, match=r"^objective\.Objective\.settling needs a recursion whose carry is one set of states"):
        Objective(2, settling=FixedPoint()).check(model_of("selective"))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(ValueError, match=r"fixed_point\.FixedPoint needs a weight above 0, got"):
        FixedPoint(weight)
