import pytest
import torch

from components.recursion import State, full_gradient, one_step_gradient


def make_step(weight, mix):
    """A step whose state has two parts, each fed by both: h' = weight * h + mix * c, c' = mix * h + c."""

    def step(state):
        context = torch.zeros_like(state.hidden) if state.context is None else state.context
        return State(weight * state.hidden + mix * context, mix * state.hidden + context)

    return step


@pytest.fixture
def parts():
    torch.manual_seed(0)
    start = torch.randn(2, 3, 4, requires_grad=True)
    return torch.tensor(0.7, requires_grad=True), torch.tensor(-0.4, requires_grad=True), start


def test_both_recursions_give_the_values_of_a_plain_loop(parts):
    weight, mix, start = parts
    h, c = start, torch.zeros_like(start)
    both = [list(recursion(make_step(weight, mix), State(start), 4)) for recursion in (full_gradient, one_step_gradient)]
    assert [len(states) for states in both] == [4, 4]
    for full, detached in zip(*both, strict=True):
        h, c = weight * h + mix * c, mix * h + c
        assert torch.equal(full.hidden, h)
        assert torch.equal(detached.hidden, h)
        assert torch.equal(detached.context, c)


def test_full_gradient_reaches_the_start_through_every_step(parts):
    weight, mix, start = parts
    last = list(full_gradient(make_step(weight, mix), State(start), 3))[-1]
    h, c = start, torch.zeros_like(start)
    for _ in range(3):
        h, c = weight * h + mix * c, mix * h + c
    expected = torch.autograd.grad(h.sum(), parts)
    for ours, plain in zip(torch.autograd.grad(last.hidden.sum(), parts), expected, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(ours, plain)


def test_one_step_gradient_equals_a_hand_detached_computation(parts):
    weight, mix, start = parts
    states = list(one_step_gradient(make_step(weight, mix), State(start), 3))
    h, c = start, torch.zeros_like(start)
    for state in states:
        h, c = h.detach(), c.detach()
        ours = torch.autograd.grad(state.hidden.sum(), (weight, mix))
        assert [g.item() for g in ours] == pytest.approx([h.sum().item(), c.sum().item()], rel=1e-4)  # d(w h + m c)/d(w, m)
        h, c = weight * h + mix * c, mix * h + c


def test_one_step_gradient_does_not_reach_earlier_steps(parts):
    weight, mix, start = parts
    inputs = []

    def step(state):
        inputs.append(state)
        return make_step(weight, mix)(state)

    last = list(one_step_gradient(step, State(start), 3))[-1]
    assert torch.autograd.grad(last.hidden.sum(), start, allow_unused=True) == (None,)
    assert len(inputs) == 3
    assert not any(state.hidden.requires_grad or state.context.requires_grad for state in inputs[1:])


def test_the_two_gradients_differ_from_the_second_step_on(parts):
    weight, mix, start = parts
    gradients = [
        [
            torch.autograd.grad(state.hidden.sum(), weight, retain_graph=True)[0]
            for state in r(make_step(weight, mix), State(start), 3)
        ]
        for r in (full_gradient, one_step_gradient)
    ]
    same = [torch.allclose(a, b) for a, b in zip(*gradients, strict=True)]
    assert same == [True, False, False]


@pytest.mark.parametrize("recursion", [full_gradient, one_step_gradient])
def test_steps_run_only_as_they_are_asked_for(recursion, parts):
    calls = []
    states = recursion(lambda state: calls.append(0) or State(state.hidden + 1), State(parts[2]), 5)
    next(states)
    next(states)
    assert len(calls) == 2


def test_the_first_step_of_one_step_gradient_still_reaches_what_made_the_state():
    x = torch.ones(1, 1, 1, requires_grad=True)
    first, second = one_step_gradient(lambda s: State(s.hidden * 3), State(x * 2), 2)
    assert torch.autograd.grad(first.hidden.sum(), x)[0].item() == 6
    assert not second.hidden.requires_grad
