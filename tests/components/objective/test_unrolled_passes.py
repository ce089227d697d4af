"""Denoising passes unrolled: the gradient is that of one graph which holds all of them, through the carries that are handed on."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from components.backbones.tiny_lm import TinyLM
from components.objective.activations import checkpoint, keep
from components.objective.deep_supervision import backward
from components.objective.objective import Objective
from components.objective.supervision import constant, learned
from components.recursion import full_gradient, mapped, one_step_gradient, truncated_gradient
from components.refined_lm import RefinedLM
from components.refiners.memory import Memory
from tests.support.cores import ATTENTION, CORES, DIM, HEADS, LAYERS, SEQ, VOCAB, batch, made, model_of

SEQUENCES, STEPS = 7, 3
OVER = {"slots": "hidden", "mlp": "hidden", "recursive": "z_H"}
over = pytest.mark.parametrize("name", OVER)
policies = pytest.mark.parametrize("activations", [keep, checkpoint], ids=["keep", "checkpoint"])


def model_over(name, joint=False, closed=False):
    backbone = TinyLM(VOCAB, SEQ, DIM, LAYERS, HEADS)
    backbone.init_weights(torch.Generator().manual_seed(0))
    core = made(partial(Memory, refiner=CORES[name]))
    for parameter in core.gates.parameters() if closed else ():  # as they are before training
        torch.nn.init.zeros_(parameter)
    return RefinedLM(backbone.requires_grad_(joint), core).double()


def passes_of(number):
    """Batches of the same sequences, each with fewer masks."""
    first = batch()
    batches = [first]
    for place in range(1, number):
        before = batches[-1]
        masked = before.masked & (torch.rand(before.masked.shape, generator=torch.Generator().manual_seed(place)) < 0.7)
        tokens = torch.where(before.masked & ~masked, before.targets, before.tokens)
        batches.append(replace(before, tokens=tokens, masked=masked, weights=before.weights * masked))
    return replace(first, later=tuple(batches[1:]))


def plain(model, unrolled, weights, cuts=(), remembers=True):
    """The weighted sum over all steps of all passes in one graph, logits everywhere; detached before steps of these numbers."""
    total, carry, losses = 0.0, {}, [0.0] * len(weights)
    for place, each in enumerate([unrolled, *unrolled.later]):
        condition, fresh, layout = model.begin(each)
        for number, weight in enumerate(weights):
            if place * len(weights) + number in cuts:
                carry = mapped(torch.Tensor.detach, carry)
            if number == 0:
                carry = model.refiner.recalled(fresh, carry) if place and remembers else fresh
            state = model.step(number, carry, condition, layout)
            carry, logits = state.carry, model.readout(state.hidden)
            nll = F.cross_entropy(logits.transpose(1, 2), each.targets, reduction="none")
            loss = (nll * each.weights).sum() / (SEQUENCES * len([unrolled, *unrolled.later]))
            losses[number] += loss.item()
            total = total + weight * loss
    return total, losses


def gradients(model):
    named = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: torch.zeros(()) if gradient is None else gradient for name, gradient in named.items()}


def of_plain(model, *arguments, **settings):
    model.zero_grad()
    total, losses = plain(model, *arguments, **settings)
    total.backward()
    return total.item(), losses, {name: g.clone() for name, g in gradients(model).items()}


def of_ours(model, unrolled, weights, **settings):
    model.zero_grad()
    supervised = backward(model, unrolled, weights, sequences=SEQUENCES, **settings)
    return supervised.total.item(), [loss.item() for loss in supervised.losses], gradients(model)


def assert_same(ours, expected):
    assert ours[0] == pytest.approx(expected[0], rel=1e-10) and ours[1] == pytest.approx(expected[1], rel=1e-10)
    for name, gradient in expected[2].items():
        torch.testing.assert_close(ours[2][name], gradient.expand_as(ours[2][name]), rtol=1e-8, atol=1e-10, msg=name)


@over
@policies
@pytest.mark.parametrize("passes", [2, 3, 4])
def test_the_gradient_flows_through_all_passes(name, activations, passes):
    model, unrolled, weights = model_over(name), passes_of(passes), [0.3, 0.0, 0.8]
    ours = of_ours(model, unrolled, weights, activations=activations)
    assert_same(ours, of_plain(model, unrolled, weights))
    assert ours[2][f"refiner.gates.{OVER[name]}.weight"].abs().max() > 0


@over
@pytest.mark.parametrize("bptt", [full_gradient, partial(truncated_gradient, last=2)], ids=["full", "last 2"])
def test_a_tail_that_is_trained_along_gets_its_gradient_too(name, bptt):
    model, unrolled = model_over(name, joint=True), passes_of(2)
    cuts = () if bptt is full_gradient else (2, 4)
    assert_same(of_ours(model, unrolled, [0.3, 0.2, 0.8], bptt=bptt), of_plain(model, unrolled, [0.3, 0.2, 0.8], cuts))


@over
@policies
@pytest.mark.parametrize(
    ("bptt", "cuts"),
    [(one_step_gradient, range(1, 6)), (partial(truncated_gradient, last=3), (3,)), (partial(truncated_gradient, last=4), (2,))],
    ids=["one step", "within a pass", "the last 4"],
)
def test_where_the_gradient_is_cut_is_said_of_all_steps_of_all_passes(name, activations, bptt, cuts):
    model, unrolled, weights = model_over(name), passes_of(2), [0.3, 0.2, 0.8]
    assert_same(of_ours(model, unrolled, weights, bptt=bptt, activations=activations), of_plain(model, unrolled, weights, cuts))


@over
def test_backpropagation_through_a_pass_makes_a_difference(name):
    model, unrolled, weights = model_over(name), passes_of(2), [0.3, 0.2, 0.8]
    through = of_ours(model, unrolled, weights)[2]
    cut = of_ours(model, unrolled, weights, bptt=partial(truncated_gradient, last=3))[2]
    assert any(not torch.allclose(through[key], cut[key]) for key in through)


@over
def test_untrained_memory_trains_as_none_would_and_its_gates_learn(name):
    model, unrolled, weights = model_over(name, closed=True), passes_of(2), [0.3, 0.2, 0.8]
    ours, expected = of_ours(model, unrolled, weights), of_plain(model, unrolled, weights, remembers=False)
    gates = {key: ours[2].pop(key) for key in list(ours[2]) if ".gates." in key}
    assert_same(ours, (expected[0], expected[1], {key: value for key, value in expected[2].items() if key not in gates}))
    assert all(gate.abs().max() > 0 for gate in gates.values())


def test_a_model_that_does_not_remember_takes_passes_as_so_many_rows():
    model, unrolled, weights = model_of("slots"), passes_of(3), constant(STEPS)
    ours = of_ours(model, unrolled, weights)
    model.zero_grad()
    parts = [backward(model, replace(each, later=None), weights, sequences=3 * SEQUENCES) for each in unrolled.passes]
    assert ours[0] == pytest.approx(sum(part.total.item() for part in parts))
    assert all(torch.allclose(ours[2][name], gradient) for name, gradient in gradients(model).items())


def test_statistics_are_of_every_step_of_every_pass():
    supervised = backward(model_over("slots"), passes_of(2), constant(STEPS), sequences=SEQUENCES, statistics=True)
    assert len(supervised.losses) == STEPS and len(supervised.statistics) == 2 * STEPS and all(supervised.statistics)


def test_learned_weights_take_the_mean_of_the_passes():
    model, unrolled = model_over("slots"), passes_of(2)
    goal = Objective(STEPS, supervision=learned).double()
    supervised = goal.gradient(model, unrolled, sequences=SEQUENCES)
    by_hand = Objective(STEPS, supervision=learned).double()
    by_hand.learned.backward([torch.tensor(loss) for loss in plain(model, unrolled, [1.0] * STEPS)[1]], len(unrolled) / SEQUENCES)
    assert len(supervised.losses) == STEPS
    torch.testing.assert_close(goal.learned.log_variance.grad, by_hand.learned.log_variance.grad)


def test_padding_is_there_in_every_pass():
    assert all(torch.equal(each.attention, ATTENTION) for each in passes_of(3).passes)
