"""Noise on the carry: the gradient is that of the graph in which it is added by hand, and of each sequence it is its own."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from torch.nn import functional as F

from components.batch import Batch
from components.noise import identity, key, uniform
from components.objective.activations import checkpoint, keep
from components.objective.carry_noise import CARRY, CarryNoise
from components.objective.lead import RandomLead
from components.objective.objective import Objective
from components.objective.supervision import linear_decay
from components.recursion import full_gradient, one_step_gradient
from tests.support.cores import batch, model_of

KEY, SEQUENCES = key(5, 17), 7
STATES = {
    "slots": ["hidden"],
    "slots_added": ["hidden"],
    "recursive": ["z_H", "z_L"],
    "mlp": ["hidden"],
    "tapped": ["hidden"],
    "standalone": ["z_H", "z_L"],
}


def by_hand(carry, states, size, number, of):
    """Quantiles of the standard normal distribution at counter-based uniform numbers, times size and rms of each token."""
    changed, uid = dict(carry), identity(of.tokens, of.attention)
    for stream, name in enumerate(states):
        flat = uniform(key(KEY, CARRY, number), stream, uid, carry[name][0].numel()).flatten().tolist()
        numbers = torch.tensor([NormalDist().inv_cdf(u + 2.0**-54) for u in flat], dtype=torch.float64).view(carry[name].shape)
        rms = carry[name].detach().square().mean(-1, keepdim=True).sqrt()
        changed[name] = carry[name] + size * rms * numbers
    return changed


def plain(model, of, noise, states, lead=0):
    """The weighted loss of every step, in one graph with noise added by hand."""
    condition, carry, layout = model.begin(of)
    carry, total = by_hand(carry, states, noise.start, 0, of) if noise.start else carry, 0.0
    weights = linear_decay(model.n_steps)
    for number in range(lead + model.n_steps):
        if number > lead and noise.each:
            carry = by_hand(carry, states, noise.each, number - lead, of)
        state = model.step(number, carry, condition, layout)
        carry = {name: value.detach() for name, value in state.carry.items()} if number < lead else state.carry
        if number >= lead:
            nll = F.cross_entropy(model.readout(state.hidden).transpose(1, 2), of.targets, reduction="none")
            total = total + weights[number - lead] * (nll * of.weights).sum() / SEQUENCES
    return total


def gradients(model, objective, of, **settings):
    model.zero_grad()
    supervised = objective.gradient(model, of, sequences=SEQUENCES, key=KEY, **settings)
    return supervised, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sizes", [(0.5, 0.0), (0.0, 0.2), (0.3, 0.1)], ids=["start", "each", "both"])
@pytest.mark.parametrize("name", STATES)
def test_the_gradient_is_that_of_noise_added_by_hand(name, sizes):
    model, of, noise = model_of(name), batch(), CarryNoise(*sizes)
    supervised, found = gradients(model, Objective(model.n_steps, noise=noise), of)
    total = plain(model, of, noise, STATES[name])
    named = {n: p for n, p in model.named_parameters() if n in found}
    expected = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    assert supervised.total.item() == pytest.approx(total.item(), rel=1e-9)
    largest = max(value.abs().max() for value in expected.values())
    assert all((found[n] - value).abs().max() <= 1e-9 * largest for n, value in expected.items())
    without, _ = gradients(model, Objective(model.n_steps), of)
    assert abs(without.total - supervised.total) > 1e-4 * without.total


@pytest.mark.parametrize("lead", [0, 2])
def test_what_leads_starts_from_noise_and_policies_agree_in_every_bit(lead):
    model, of, noise = model_of("slots"), batch(), CarryNoise(0.4, 0.1)
    stored = gradients(model, Objective(3, noise=noise), of, lead=lead)
    assert stored[0].total.item() == pytest.approx(plain(model, of, noise, ["hidden"], lead).item(), rel=1e-9)
    again = gradients(model, Objective(3, noise=noise, activations=checkpoint), of, lead=lead)
    assert torch.equal(stored[0].total, again[0].total) and all(torch.equal(stored[1][n], again[1][n]) for n in stored[1])


def test_cutting_the_gradient_changes_no_noise():
    model, of = model_of("recursive"), batch()
    totals = [
        gradients(model, Objective(3, noise=CarryNoise(0.4, 0.1), bptt=bptt, activations=keep), of)[0].total
        for bptt in (full_gradient, one_step_gradient)
    ]
    assert torch.equal(*totals)


def test_the_noise_of_a_sequence_is_its_own_in_any_microbatch():
    """Also with less padding beside it; other keys, steps and tokens have other noise."""
    model, of, noise = model_of("slots"), batch(), CarryNoise(0.4, 0.1)

    def carried(of, key=KEY, number=1):
        _, carry, _ = model.begin(of)
        return noise(key, number, carry, model, of)["hidden"]

    whole = carried(of)
    for row in range(3):
        length = int(of.attention[row].sum())
        alone = Batch(*(x[row : row + 1, :length] for x in (of.tokens, of.targets, of.masked, of.weights, of.attention)))
        assert torch.allclose(carried(alone)[0], whole[row, :length], rtol=1e-9)
    other = replace(of, tokens=(of.tokens + 1) % 11)
    assert not any(torch.equal(whole, changed) for changed in (carried(of, key=KEY + 1), carried(of, number=2)))
    _, fresh, _ = model.begin(other)
    assert not torch.allclose(carried(other) - fresh["hidden"], whole - model.begin(of)[1]["hidden"])


def test_a_model_of_one_step_gets_none_and_one_that_carries_nothing_is_refused():
    assert Objective(1, noise=CarryNoise()).noise is None and Objective(2, noise=CarryNoise()).noise == CarryNoise()
    for name in ("hybrid", "cascade", "memory", "chunk_masking"):
        objective = Objective(2, lead=RandomLead(), noise=CarryNoise())
        with pytest.raises(ValueError, match=r"^objective\.Objective\.noise needs a recursion whose carry is one set of states"):
            objective.check(model_of(name))
    assert Objective(2, noise=CarryNoise()).check(model_of("slots")) is None and Objective(2).check(model_of("hybrid")) is None


@pytest.mark.parametrize("sizes", [(-0.1, 0.0), (0.5, -1.0), (math.nan, 0.1)])
def test_what_is_no_size_is_refused(sizes):
    with pytest.raises(ValueError, match=r"carry_noise\.CarryNoise needs sizes of at least 0, got start"):
        CarryNoise(*sizes)
