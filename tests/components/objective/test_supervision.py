from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.objective.supervision import (
    LearnedWeights,
    constant,
    custom,
    exponential_decay,
    last_only,
    learned,
    linear_decay,
    of_first_steps,
    supervised_steps,
    u_shaped,
)

hypothesis_settings = settings(max_examples=25, deadline=None)
STEPS = st.integers(1, 16)
WEIGHTS = st.floats(0.01, 1)
WEIGHTED = {"constant": constant, "linear_decay": linear_decay, "exponential_decay": exponential_decay}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, [0.3, 0.3, 0.3, 1]),
        (linear_decay, [0.3 * 1 / 4, 0.3 * 2 / 4, 0.3 * 3 / 4, 1]),
        (exponential_decay, [0.3 / 8, 0.3 / 4, 0.3 / 2, 1]),
        (u_shaped, [0.3, 0.3 / 9, 0.3 / 9, 1]),
    ],
)
def test_four_steps_weigh_as_written(schedule, expected):
    assert schedule(4, 0.3) == pytest.approx(expected)


def test_last_only_weighs_the_last_step_alone():
    assert last_only(3) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("schedule", WEIGHTED.values(), ids=WEIGHTED)
@hypothesis_settings
@given(STEPS, WEIGHTS)
def test_weights_are_one_per_step_never_fall_and_end_at_one(schedule, steps, weight):
    weights = schedule(steps, weight)
    assert len(weights) == steps
    assert weights[-1] == 1.0
    assert weights == sorted(weights)
    assert min(weights) > 0


@pytest.mark.parametrize("schedule", [*WEIGHTED.values(), u_shaped, last_only], ids=[*WEIGHTED, "u_shaped", "last_only"])
def test_the_founding_weight_is_that_of_the_note_and_the_last_step_weighs_one(schedule):
    """Nothing is divided by the sum: a weight is what a step's loss is multiplied by."""
    for steps in (1, 2, 5):
        assert schedule(steps)[-1] == 1.0 and max(schedule(steps)[:-1], default=0) <= 0.5


@hypothesis_settings
@given(st.integers(2, 16), WEIGHTS)
def test_u_shaped_weights_fall_to_the_middle_and_rise_again_alike(steps, weight):
    *weights, last = u_shaped(steps, weight)
    mirrored = [*weights, weight]
    assert last == 1.0 and mirrored == pytest.approx(mirrored[::-1]) and weights[0] == weight
    middle = (steps + 1) // 2
    assert mirrored[:middle] == sorted(mirrored[:middle], reverse=True) and min(weights) >= 0


def test_one_step_is_both_the_first_and_the_last():
    for schedule in (u_shaped, constant, linear_decay, exponential_decay, last_only):
        assert schedule(1) == [1.0]


# Given weights


@hypothesis_settings
@given(st.lists(st.floats(0, 2), max_size=8), st.floats(0.1, 2))
def test_custom_weights_are_those_given(weights, last):
    assert custom(len(weights) + 1, [*weights, last]) == [*weights, last]


@pytest.mark.parametrize("weights", [[1.0], [0.1, 0.2, 0.3, 1.0], [0.5, -0.1, 1.0], [0.5, 0.5, 0.0], []])
def test_custom_weights_that_do_not_fit_are_an_error_naming_them(weights):
    with pytest.raises(ValueError, match=r"needs 3 weights, none negative, the last above 0, got \[") as error:
        custom(3, weights)
    assert str(list(weights)) in str(error.value)


# Learned weights


def kendall(losses, s):
    """The formula, for autograd."""
    return sum(torch.exp(-s_k) * loss + s_k for loss, s_k in zip(losses, s, strict=True))


@hypothesis_settings
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(-2, 2)), min_size=1, max_size=6))
def test_the_gradient_of_learned_weights_is_that_of_the_formula(pairs):
    losses, s = (torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True))
    module = LearnedWeights(len(pairs)).double()
    module.log_variance.data.copy_(s)
    expected = torch.autograd.functional.jacobian(lambda s: kendall(losses, s), s)
    module.backward(losses.unbind(), share=1.0)
    torch.testing.assert_close(module.log_variance.grad, expected, rtol=1e-12, atol=1e-12)


def test_parts_of_learned_weights_add_up_to_the_whole():
    whole, parts = learned(3), learned(3)
    for module in (whole, parts):
        module.log_variance.data.copy_(torch.tensor([0.3, -0.2, 1.0]))
    shares = (0.25, 0.75)
    measured = [torch.tensor([1.0, 0.5, 2.0]), torch.tensor([0.2, 3.0, 1.0])]
    whole.backward(sum(measured).unbind(), 1.0)
    for share, losses in zip(shares, measured, strict=True):
        parts.backward(losses.unbind(), share)
    torch.testing.assert_close(parts.log_variance.grad, whole.log_variance.grad)


def test_learned_weights_begin_at_one_and_carry_no_gradient():
    module = learned(4)
    assert [weight.item() for weight in module.weights()] == [1.0] * 4
    assert not any(weight.requires_grad for weight in module.weights())
    module.log_variance.data.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    assert torch.stack(module.weights()).tolist() == pytest.approx(torch.tensor([0.0, -1.0, 1.0, -2.0]).exp().tolist())


def test_learned_weights_of_steady_losses_settle_where_noisy_steps_weigh_less():
    module, losses = learned(2), torch.tensor([2.0, 0.5])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        module.backward(losses.unbind(), 1.0)
        optimizer.step()
    assert torch.stack(module.weights()).tolist() == pytest.approx([0.5, 2.0], rel=1e-3)  # d/ds = 0 at exp(-s) = 1 / loss


# A curriculum


@pytest.mark.parametrize("schedule", [*WEIGHTED.values(), u_shaped, last_only], ids=[*WEIGHTED, "u_shaped", "last_only"])
@hypothesis_settings
@given(STEPS, st.floats(0, 2))
def test_a_curriculum_supervises_the_first_steps_as_if_there_were_no_others(schedule, steps, progress):
    depth = supervised_steps(steps, progress)
    weights = of_first_steps(schedule, steps, depth)
    assert depth == min(steps, int(progress * steps) + 1)
    assert len(weights) == steps and weights[:depth] == schedule(depth) and not any(weights[depth:])


def test_a_curriculum_never_gets_shallower_and_ends_with_everything():
    depths = [supervised_steps(4, progress / 100) for progress in range(101)]
    assert depths[0] == 1 and depths[-1] == 4 and depths == sorted(depths) and set(depths) == {1, 2, 3, 4}
    assert [sum(weight > 0 for weight in of_first_steps(constant, 4, depth)) for depth in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert of_first_steps(partial(linear_decay, weight=0.7), 4, 4) == linear_decay(4, 0.7)
