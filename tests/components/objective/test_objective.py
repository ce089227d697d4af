"""The objective: the gradient that it leaves is that of its formula, at any share of the run; its settings fit or are refused."""

from functools import partial
from inspect import signature

import pytest
import torch
from torch.nn import functional as F

from components.objective.activations import checkpoint, keep
from components.objective.losses import squared_error
from components.objective.objective import Objective
from components.objective.supervision import constant, custom, last_only, learned, linear_decay
from components.recursion import full_gradient, one_step_gradient, truncated_gradient
from pipeline.training.loop import fit
from tests.support.cores import batch, model_of

SEQUENCES = 7  # of the optimizer step; the microbatch has three of them


def losses_of(model, batch):
    """Loss of each step, in one graph, with logits at every position."""
    found = []
    for state in model.steps(batch):
        nll = F.cross_entropy(model.readout(state.hidden).transpose(1, 2), batch.targets, reduction="none")
        found.append((nll * batch.weights).sum() / SEQUENCES)
    return found


def gradients(model, objective, **settings):
    """What the objective says, and the gradient of every trained parameter of the model."""
    model.zero_grad()
    supervised = objective.gradient(model, batch(), sequences=SEQUENCES, **settings)
    return supervised, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def by_hand(model, weights):
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = sum(weight * loss for weight, loss in zip(weights, losses_of(model, batch()), strict=True))
    return [g for g in torch.autograd.grad(total, parameters, allow_unused=True) if g is not None]


def assert_close(one, other):
    largest = max(value.abs().max() for value in other)
    assert len(one) == len(other) > 3 and largest > 1e-6
    assert all((a - b).abs().max() <= 1e-9 * largest for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("progress", "weights"),
    [(0.0, [1.0, 0.0, 0.0]), (0.2, [0.25, 1.0, 0.0]), (0.5, [1 / 6, 1 / 3, 1.0]), (1.0, [1 / 6, 1 / 3, 1.0])],
)
def test_a_curriculum_supervises_more_steps_with_the_share_of_the_run(progress, weights):
    model, objective = model_of("slots"), Objective(3, curriculum=0.5)
    assert objective.weights(progress) == pytest.approx(weights)
    assert objective.depth(progress) == sum(weight > 0 for weight in weights)
    assert_close(gradients(model, objective, progress=progress)[1], by_hand(model, weights))


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_without_a_curriculum_weights_are_those_of_the_schedule_throughout(progress):
    model, objective = model_of("slots"), Objective(3, supervision=constant)
    supervised, found = gradients(model, objective, progress=progress)
    assert_close(found, by_hand(model, [0.5, 0.5, 1.0]))
    assert [loss.item() for loss in supervised.losses] == pytest.approx([loss.item() for loss in losses_of(model, batch())])
    assert objective.depth(progress) == 3 and not list(objective.parameters())


def test_learned_weights_are_parameters_of_the_objective_and_get_the_gradient_of_their_formula():
    model, objective = model_of("slots"), Objective(3, supervision=learned)
    s = objective.learned.log_variance
    with torch.no_grad():
        s.copy_(torch.tensor([0.3, -0.2, 0.1]))
    _, found = gradients(model, objective)
    losses = torch.stack(losses_of(model, batch())).detach().to(s)
    formula = torch.autograd.functional.jacobian(lambda s: (torch.exp(-s) * losses + 3 / SEQUENCES * s).sum(), s.detach())
    torch.testing.assert_close(s.grad, formula)
    assert_close(found, by_hand(model, torch.exp(-s.detach()).to(torch.float64).tolist()))
    assert [name for name, _ in objective.named_parameters()] == ["learned.log_variance"]
    assert not any("learned" in name for name in model.state_dict())


@pytest.mark.parametrize("supervision", [linear_decay, last_only, learned])
@pytest.mark.parametrize("bptt", [full_gradient, truncated_gradient, one_step_gradient])
def test_what_is_kept_changes_no_bit_of_any_gradient(supervision, bptt):
    model, results = model_of("slots"), []
    for activations in (keep, checkpoint):
        objective = Objective(3, supervision=supervision, bptt=bptt, activations=activations)
        supervised, found = gradients(model, objective)
        results.append([*found, supervised.total, *supervised.losses, *(p.grad for p in objective.parameters())])
    assert len(results[0]) == len(results[1]) and all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_losses_for_validation_are_sums_of_each_step_and_need_no_gradient():
    model = model_of("slots")
    found = Objective(3, supervision=last_only).losses(model, batch())
    assert found.tolist() == pytest.approx([loss.item() * SEQUENCES for loss in losses_of(model, batch())], rel=1e-6)
    assert not found.requires_grad
    assert not torch.allclose(Objective(3, squared_error).losses(model, batch()), found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curriculum": -0.1}, r"curriculum must be at least 0, at most 1, got -0\.1"),
        ({"curriculum": 1.5}, r"curriculum must be at least 0, at most 1, got 1\.5"),
        ({"curriculum": 0.5, "supervision": learned}, "curriculum grows given weights; supervision.learned finds its own"),
        ({"supervision": partial(custom, weights=(1.0, 1.0))}, r"needs 3 weights, .* got \[1\.0, 1\.0\]"),
        ({"curriculum": 0.5, "supervision": partial(custom, weights=(0.5, 0.5, 1.0))}, "needs 1 weights"),
        ({"bptt": partial(truncated_gradient, last=0)}, "at least 1 step, got last 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_it_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(3, **settings)


def test_the_training_loop_knows_no_setting_of_it():
    of_loop, of_objective = set(signature(fit).parameters), set(signature(Objective).parameters)
    assert of_loop & of_objective == {"steps"} and "objective" in of_loop and len(of_loop) <= 15
