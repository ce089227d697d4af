"""The gradient of a loss at every step: that of the one graph which holds them all, for every core, schedule, cut and policy."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.model import Model
from components.objective.activations import checkpoint, keep
from components.objective.deep_supervision import backward
from components.objective.losses import squared_error
from components.objective.supervision import (
    constant,
    custom,
    exponential_decay,
    last_only,
    learned,
    linear_decay,
    of_first_steps,
    u_shaped,
)
from components.recursion import State, full_gradient, mapped, one_step_gradient, tensors, truncated_gradient
from components.refiners.core import Layout
from tests.support.cores import CORES, VOCAB, batch, every_core_with_one, model_of
from tests.support.watching import Peak, Products

SEQUENCES = 7  # of the optimizer step; the microbatch has three of them


def given(steps):
    """Weights with a 0 in them, and no order."""
    return custom(steps, [0.3 * (k % 3) for k in range(steps - 1)] + [0.8])


def trained(steps):
    weights = learned(steps)
    nn.init.normal_(weights.log_variance, generator=torch.Generator().manual_seed(4))
    return weights.weights()


SCHEDULES = {
    "constant": constant,
    "linear_decay": linear_decay,
    "exponential_decay": exponential_decay,
    "u_shaped": u_shaped,
    "custom": given,
    "last_only": last_only,
    "learned": trained,
    "curriculum": lambda steps: of_first_steps(linear_decay, steps, 1 + steps // 2),
}
every_core = pytest.mark.parametrize("name", CORES)
POLICIES = {"keep": keep, "checkpoint": checkpoint}
both_policies = pytest.mark.parametrize("activations", POLICIES.values(), ids=POLICIES)


def plain(model, batch, weights, cuts=(), whole=False):
    """Loss of each step and their weighted sum, all in one graph, with logits at every position; detached before ``cuts``.

    ``whole``: but for what still is what the recursion started from.
    """
    condition, carry, layout = model.begin(batch)
    first = [*tensors(carry)] if whole else []
    total, losses = 0.0, []
    for number, weight in enumerate(weights):
        if number in cuts:
            carry = mapped(lambda part: part if any(part is one for one in first) else part.detach(), carry)
        state = model.step(number, carry, condition, layout)
        carry, logits = state.carry, model.readout(state.hidden)
        nll = F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")
        losses.append((nll * batch.weights).sum() / SEQUENCES)
        term = losses[-1]
        if state.penalty is not None:
            term = term + state.penalty * (len(batch) / SEQUENCES)
        if state.halt is not None:
            right = ((logits.argmax(-1) == batch.targets) | ~batch.masked).all(1)
            likelihood = torch.where(right, state.halt, -state.halt).sigmoid()
            term = term - 0.5 * likelihood.log().sum() / SEQUENCES
        total = total + weight * term
    return total, [loss.item() for loss in losses]


def learning(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def plain_gradient(model, total):
    parameters = learning(model)
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}


def gradient(model, batch, weights, **settings):
    """What ``backward`` says, and the gradient by name."""
    model.zero_grad()
    found = backward(model, batch, weights, sequences=SEQUENCES, **settings)
    return found, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in learning(model).items()}


def assert_close(found, expected, relative):
    """Relative to the largest gradient of all."""
    largest = max(value.abs().max().item() for value in expected.values())
    assert found.keys() == expected.keys() and largest > 1e-6
    for name, value in expected.items():
        assert (found[name] - value).abs().max().item() <= relative * largest, name


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Every core with a schedule, some with all


@every_core_with_one("schedule", SCHEDULES)
def test_the_gradient_is_that_of_the_one_graph_and_recomputing_changes_no_bit(name, schedule):
    model = model_of(name)
    weights = schedule(model.n_steps)
    total, losses = plain(model, batch(), weights)
    expected = plain_gradient(model, total)
    found, stored = gradient(model, batch(), weights)
    assert_close(stored, expected, 1e-12)
    assert found.total.item() == pytest.approx(total.item(), rel=1e-6)
    assert [loss.item() for loss in found.losses] == pytest.approx(losses, rel=1e-6)
    again, recomputed = gradient(model, batch(), weights, activations=checkpoint)
    assert_same(recomputed, stored)
    assert torch.equal(again.total, found.total)
    assert all(torch.equal(a, b) for a, b in zip(again.losses, found.losses, strict=True))


@every_core
def test_a_backbone_that_is_trained_along_gets_its_gradient_too(name):
    model = model_of(name, joint=True)
    weights = linear_decay(model.n_steps)
    expected = plain_gradient(model, plain(model, batch(), weights)[0])
    _, stored = gradient(model, batch(), weights)
    assert_close(stored, expected, 1e-12)
    assert_same(gradient(model, batch(), weights, activations=checkpoint)[1], stored)
    for part in ("embedding.weight", "positions", "head.weight"):
        assert any(n.endswith(part) and value.any() for n, value in stored.items()), part


@every_core
def test_single_precision_is_as_close_as_its_rounding(name):
    model = model_of(name, std=0.1, dtype=torch.float32)
    weights = linear_decay(model.n_steps)
    expected = plain_gradient(model, plain(model, batch(), weights)[0])
    assert_close(gradient(model, batch(), weights)[1], expected, 1e-6)


CUTS = {
    "one_step": (one_step_gradient, lambda steps: range(1, steps)),
    "truncated_2": (truncated_gradient, lambda steps: range(steps % 2 or 2, steps, 2)),
    "truncated_3": (partial(truncated_gradient, last=3), lambda steps: range(steps % 3 or 3, steps, 3)),
}


CUTS_AND_POLICIES = {f"{cut}-{name}": (*CUTS[cut], policy) for cut in CUTS for name, policy in POLICIES.items()}


@every_core_with_one("bptt,cuts,activations", CUTS_AND_POLICIES)
def test_segments_give_the_gradient_of_a_graph_detached_by_hand(name, bptt, cuts, activations):
    model = model_of(name, joint=True)
    weights = linear_decay(model.n_steps)
    total, losses = plain(model, batch(), weights, cuts(model.n_steps))
    expected = plain_gradient(model, total)
    found, ours = gradient(model, batch(), weights, bptt=bptt, activations=activations)
    assert_close(ours, expected, 1e-12)
    assert [loss.item() for loss in found.losses] == pytest.approx(losses, rel=1e-6)


LEADS = {f"{lead}-{name}": (lead, policy) for lead in (1, 2, 5) for name, policy in POLICIES.items()}


@every_core_with_one("lead,activations", LEADS)
def test_after_a_lead_the_gradient_is_that_of_the_steps_which_follow(name, lead, activations):
    """All steps from the first on, in one graph, with what the first ones make detached by hand: they weigh nothing."""
    model = model_of(name, joint=True)
    weights = linear_decay(model.n_steps)
    total, losses = plain(model, batch(), [0.0] * lead + weights, [lead], whole=True)
    expected = plain_gradient(model, total)
    found, ours = gradient(model, batch(), weights, lead=lead, activations=activations)
    assert_close(ours, expected, 1e-12)
    assert [loss.item() for loss in found.losses] == pytest.approx(losses[lead:], rel=1e-6)


@pytest.mark.parametrize("name", ["slots", "recursive", "mlp", "cascade", "hybrid", "standalone"])
def test_where_the_gradient_is_cut_makes_a_difference(name):
    model = model_of(name)
    ways = [gradient(model, batch(), last_only(model.n_steps), bptt=s)[1] for s in (full_gradient, one_step_gradient)]
    largest = max(value.abs().max().item() for value in ways[0].values())
    assert max((ways[0][n] - ways[1][n]).abs().max().item() for n in ways[0]) > 0.01 * largest


# Weights of 0


@both_policies
@pytest.mark.parametrize("bptt", [full_gradient, one_step_gradient])
def test_a_step_of_weight_zero_is_reported_and_measured_and_moves_nothing(activations, bptt):
    model = model_of("slots")
    weights = [1.0, 0.0, 0.0]
    total, losses = plain(model, batch(), weights)
    found, ours = gradient(model, batch(), weights, activations=activations, bptt=bptt, statistics=True)
    assert_close(ours, plain_gradient(model, total), 1e-12)
    assert [loss.item() for loss in found.losses] == pytest.approx(losses, rel=1e-6)
    assert [len(measured) for measured in found.statistics] == [11, 11, 11]
    assert found.total.item() == pytest.approx(losses[0], rel=1e-6)


@both_policies
def test_all_weights_zero_leave_no_gradient(activations):
    model = model_of("slots_penalty")
    found, ours = gradient(model, batch(), [0.0, 0.0, 0.0], activations=activations)
    assert found.total.item() == 0 and not any(value.any() for value in ours.values()) and all(found.losses)


# What is reported


@every_core_with_one("activations", POLICIES)
def test_statistics_are_those_of_the_steps_and_change_nothing(name, activations):
    model = model_of(name)
    weights = given(model.n_steps)
    expected = [state.statistics for state in model.steps(batch(), statistics=True)]
    found, ours = gradient(model, batch(), weights, activations=activations, statistics=True)
    for measured, by_hand in zip(found.statistics, expected, strict=True):
        assert {n: v.item() for n, v in measured.items()} == pytest.approx({n: v.item() for n, v in by_hand.items()}, rel=1e-6)
        assert not any(value.requires_grad for value in measured.values())
    without, same = gradient(model, batch(), weights, activations=activations)
    assert_same(ours, same)
    assert without.statistics == [{}] * model.n_steps


@both_policies
def test_nothing_that_is_reported_holds_a_graph(activations):
    model = model_of("slots_penalty")
    found, _ = gradient(model, batch(), constant(3), activations=activations)
    assert not any(value.requires_grad for value in (found.total, *found.losses))


@both_policies
def test_a_gradient_is_added_to_what_is_there(activations):
    model = model_of("slots")
    _, once = gradient(model, batch(), constant(3), activations=activations)
    backward(model, batch(), constant(3), sequences=SEQUENCES, activations=activations)
    assert_close({n: p.grad for n, p in learning(model).items()}, {n: 2 * value for n, value in once.items()}, 1e-12)


def test_losses_are_divided_by_the_sequences_of_the_optimizer_step():
    model = model_of("recursive_cycles")  # with a halting loss
    whole = batch(sequences=6)
    parts = [whole.take(torch.arange(6)[part]) for part in (slice(0, 2), slice(2, 6))]
    found, expected = gradient(model, whole, constant(3))
    model.zero_grad()
    sums = [backward(model, part, constant(3), sequences=SEQUENCES) for part in parts]
    assert_close({n: p.grad for n, p in learning(model).items()}, expected, 1e-12)
    assert sum(part.total.item() for part in sums) == pytest.approx(found.total.item(), rel=1e-6)


@both_policies
def test_a_batch_in_which_nothing_is_supervised_has_no_gradient(activations):
    model, empty = model_of("slots"), batch(masked=0.0)
    found, ours = gradient(model, empty, constant(3), activations=activations)
    assert found.total.item() == 0 and not any(value.any() for value in ours.values())


# Precision


@pytest.mark.parametrize("name", ["slots_penalty", "recursive_cycles", "cascade", "hybrid", "standalone"])
def test_under_autocast_the_gradient_is_close_and_recomputing_changes_no_bit(name):
    model = model_of(name, std=0.2, dtype=torch.float32)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    with autocast():
        total, _ = plain(model, batch(), constant(model.n_steps))
    found, stored = gradient(model, batch(), constant(model.n_steps), autocast=autocast)
    assert_close(stored, plain_gradient(model, total), 0.1)
    again, recomputed = gradient(model, batch(), constant(model.n_steps), autocast=autocast, activations=checkpoint)
    assert_same(recomputed, stored)
    assert torch.equal(found.total, again.total) and found.total.dtype == torch.float32


# What a model draws


class Drawing(Model):
    """Three steps with dropout and a penalty."""

    n_steps = 3

    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, 8), nn.Linear(8, VOCAB, bias=False)
        self.drop = nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def begin(self, batch, positions=None):
        return {}, {"hidden": self.drop(self.embedding(batch.tokens))}, Layout(batch.attention, positions)

    def step(self, number, carry, condition, layout, statistics=False):
        hidden = self.drop(torch.tanh(self.inner(carry["hidden"])))
        return State(hidden, {"hidden": hidden}, penalty=hidden.square().mean())

    def normed(self, state):
        return state


@pytest.mark.parametrize("bptt", [full_gradient, truncated_gradient, one_step_gradient])
def test_a_step_that_is_made_again_draws_the_same(bptt):
    model, ways = Drawing().train(), {}
    for activations in (keep, checkpoint):
        torch.manual_seed(5)
        found, ways[activations] = gradient(model, batch(), [0.5, 0.0, 1.0], bptt=bptt, activations=activations)
        ways[activations] |= {"total": found.total, "drawn after": torch.rand(3)}
    assert_same(ways[keep], ways[checkpoint])
    torch.manual_seed(6)
    other = gradient(model, batch(), [0.5, 0.0, 1.0], bptt=bptt)[1]
    assert not torch.equal(other["inner.weight"], ways[keep]["inner.weight"])


# What it costs


def large(seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (8, 6), generator=g)
    ones = torch.ones(8, 6, dtype=torch.bool)
    return replace(batch(), tokens=tokens, targets=tokens, masked=ones, weights=ones.float(), attention=None)


def peak(model, steps, activations, bptt):
    with Peak() as watched:
        backward(model, large(), constant(steps), sequences=8, activations=activations, bptt=bptt)
    model.zero_grad()
    return watched.bytes


def carried(model):
    """Bytes that a step hands to the next and did not get from the last."""
    states = list(model.steps(large()))
    old = {t.untyped_storage()._cdata for t in states[0].carry.values()}
    return sum(t.nbytes for t in states[1].carry.values() if t.untyped_storage()._cdata not in old)


CARRYING = ["slots", "recursive", "mlp"]


@pytest.mark.parametrize("name", CARRYING)
def test_recomputing_keeps_a_carry_a_step_and_no_more(name):
    model = model_of(name)
    gradient(model, large(), constant(3), activations=checkpoint)
    growth = [(peak(model, 7, m, full_gradient) - peak(model, 4, m, full_gradient)) / 3 for m in (checkpoint, keep)]
    assert 0.9 * carried(model) <= growth[0] <= 1.2 * carried(model)
    assert growth[1] > 4 * carried(model)


@pytest.mark.parametrize("name", CARRYING)
@both_policies
def test_the_graph_of_a_segment_is_gone_before_the_next(name, activations):
    model = model_of(name)
    growth = [
        (peak(model, 6, activations, s) - peak(model, 4, activations, s)) / 2 for s in (one_step_gradient, truncated_gradient)
    ]
    assert max(growth) < 0.05 * carried(model)


@every_core_with_one("joint", {"frozen_head": False, "trained_head": True}, whole=("slots", "hybrid"))
def test_logits_are_computed_once_a_step_by_either_policy(name, joint):
    model = model_of(name, joint=joint)
    products = 3 if model.head.weight.requires_grad else 2
    readouts = (
        1 if getattr(model, "refiner", None) is not None and model.refiner.needs_confidence else 0
    )  # the backbone's own confidence
    for activations in (keep, checkpoint):
        with Products(VOCAB) as counted:
            backward(model, batch(), constant(model.n_steps), sequences=3, activations=activations)
        assert counted.count == products * model.n_steps + readouts


@both_policies
def test_a_step_that_is_only_reported_costs_one_product(activations):
    model = model_of("slots", joint=True)
    with Products(VOCAB) as counted:
        backward(model, batch(), [0.0, 0.0, 1.0], sequences=3, activations=activations)
    assert counted.count == 3 + 1 + 1


@both_policies
def test_the_loss_of_a_step_that_no_gradient_reaches_is_told_all_the_same(activations):
    """With one-step gradients only updates of z_L see the injection, the one thing that is trained here."""
    model, of = model_of("recursive_updates"), batch()
    model.requires_grad_(False).refiner.injection.requires_grad_(True)
    weights = constant(model.n_steps)
    found = backward(model, of, weights, sequences=SEQUENCES, bptt=one_step_gradient, activations=activations)
    naive = backward(model.requires_grad_(True), of, weights, sequences=SEQUENCES)
    assert torch.allclose(torch.stack(found.losses), torch.stack(naive.losses)) and torch.allclose(found.total, naive.total)


def test_any_loss_is_supervised_at_every_step():
    """With the squared error: the gradient of the graph that holds all steps, kept or made again."""
    model, micro = model_of("slots"), batch(3)
    weights = linear_decay(model.n_steps)
    terms = [w * squared_error(model, s.hidden, micro, compute=True)[0] for w, s in zip(weights, model.steps(micro), strict=True)]
    (sum(terms) / SEQUENCES).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for activations in (keep, checkpoint):
        model.zero_grad()
        found = backward(model, micro, weights, sequences=SEQUENCES, loss=squared_error, activations=activations)
        assert torch.allclose(found.total, sum(terms).detach() / SEQUENCES, rtol=1e-5)
        assert all(torch.allclose(p.grad, expected[name], atol=1e-6) for name, p in model.named_parameters() if name in expected)
