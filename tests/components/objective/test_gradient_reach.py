"""How far gradients reach: against the gradients that one graph leaves in its own states."""

import pytest
import torch

from components.objective.gradient_reach import gradient_reach
from components.objective.losses import masked_cross_entropy
from components.recursion import full_gradient, one_step_gradient, truncated_gradient
from tests.support.cores import batch, model_of


def by_backward(model, number):
    """Norms at every state up to step ``number``, left by the backward pass of its loss alone."""
    condition, carry, layout = model.begin(batch())
    states = []
    for step in range(number + 1):
        state = model.step(step, carry, condition, layout)
        recurring = [state.carry[name] for name in model.carried_states]
        for tensor in (state.hidden, *recurring):
            tensor.retain_grad()
        states.append((state.hidden, recurring))
        carry = state.carry
    (masked_cross_entropy(model, states[-1][0], batch(), compute=True)[0] / len(batch())).backward()
    norms = [torch.stack([t.grad.norm() for t in recurring if t.grad is not None]).norm() for _, recurring in states[:-1]]
    return torch.stack([*norms, states[-1][0].grad.norm()])


@pytest.mark.parametrize("name", ["slots", "recursive"])
def test_each_loss_reaches_every_earlier_state(name):
    model = model_of(name)
    reach = gradient_reach(model, batch())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert reach.shape == (model.n_steps, model.n_steps) and model.n_steps >= 3
    for number in range(model.n_steps):
        torch.testing.assert_close(reach[number, : number + 1], by_backward(model, number).float(), rtol=1e-4, atol=1e-7)
    assert bool((reach.triu(1) == 0).all()) and bool((reach.diagonal() > 0).all())


@pytest.mark.parametrize("bptt", [one_step_gradient, truncated_gradient])
def test_a_cut_ends_the_reach_and_changes_nothing_within(bptt):
    model = model_of("slots")
    whole, cut = gradient_reach(model, batch(), full_gradient), gradient_reach(model, batch(), bptt)
    segment = [i for i, length in enumerate(bptt(model.n_steps)) for _ in range(length)]
    for j in range(model.n_steps):
        for i in range(j + 1):
            expected = whole[j, i] if segment[i] == segment[j] else torch.zeros(())
            torch.testing.assert_close(cut[j, i], expected, rtol=1e-4, atol=1e-8)


def test_a_frozen_model_receives_none():
    model = model_of("slots").requires_grad_(False)
    assert bool((gradient_reach(model, batch()) == 0).all())
