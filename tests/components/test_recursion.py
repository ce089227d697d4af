from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.recursion import (
    State,
    bptt_segments,
    detached,
    full_gradient,
    mapped,
    one_step_gradient,
    tensors,
    truncated_gradient,
)

STEPS = st.integers(1, 40)


@pytest.mark.parametrize(
    ("bptt", "steps", "expected"),
    [
        (full_gradient, 4, [4]),
        (one_step_gradient, 4, [1, 1, 1, 1]),
        (truncated_gradient, 4, [2, 2]),
        (truncated_gradient, 5, [1, 2, 2]),
        (truncated_gradient, 1, [1]),
        (lambda steps: truncated_gradient(steps, 3), 7, [1, 3, 3]),
        (lambda steps: truncated_gradient(steps, 9), 7, [7]),
    ],
)
def test_steps_are_cut_as_written(bptt, steps, expected):
    assert bptt(steps) == expected


@settings(max_examples=50, deadline=None)
@given(STEPS, STEPS)
def test_truncated_segments_hold_all_steps_and_none_is_longer(steps, last):
    lengths = truncated_gradient(steps, last)
    assert sum(lengths) == steps and max(lengths) == min(last, steps) and lengths[-1] == min(last, steps)
    assert all(length == last for length in lengths[1:]) and min(lengths) > 0


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_truncation_lies_between_the_two_ends(steps):
    assert truncated_gradient(steps, 1) == one_step_gradient(steps)
    assert truncated_gradient(steps, steps) == full_gradient(steps)


@pytest.mark.parametrize("last", [0, -1])
def test_a_segment_of_no_steps_is_an_error_naming_the_number(last):
    with pytest.raises(ValueError, match=rf"at least 1 step, got last {last}$"):
        truncated_gradient(4, last)


@settings(max_examples=50, deadline=None)
@given(STEPS, STEPS)
def test_segments_number_every_step_once_and_in_order(steps, last):
    ranges = bptt_segments(steps, lambda n: truncated_gradient(n, last))
    assert [number for numbers in ranges for number in numbers] == list(range(steps))
    assert [len(numbers) for numbers in ranges] == truncated_gradient(steps, last)


TREE = {"a": torch.ones(2), "b": {"c": torch.zeros(3), "d": {}}, "e": torch.full((1,), 5.0)}


def test_mapped_changes_every_tensor_and_keeps_the_shape_of_the_tree():
    changed = mapped(lambda tensor: tensor + 1, TREE)
    assert list(changed) == ["a", "b", "e"] and list(changed["b"]) == ["c", "d"] and changed["b"]["d"] == {}
    assert [tensor.tolist() for tensor in tensors(changed)] == [[2, 2], [1, 1, 1], [6]]
    assert TREE["a"].tolist() == [1, 1]


def test_tensors_come_in_order():
    assert [len(tensor) for tensor in tensors(TREE)] == [2, 3, 1]
    assert list(tensors({})) == []


def test_a_state_hands_on_nothing_unless_told():
    state = State(torch.zeros(1, 2, 3))
    assert state.carry == {} and state.statistics == {} and state.penalty is None and state.halt is None
    with pytest.raises(FrozenInstanceError):
        state.hidden = torch.ones(1, 2, 3)


def test_what_a_step_makes_is_detached_and_what_it_hands_on_is_not():
    handed, made = (torch.ones(2, requires_grad=True) * 2 for _ in range(2))
    before = {"a": handed, "inner": {"a": handed, "b": handed}}
    after = detached({"a": handed, "inner": {"a": handed, "b": made}, "new": made}, before)
    assert after["a"] is handed and after["inner"]["a"] is handed
    assert not after["inner"]["b"].requires_grad and not after["new"].requires_grad and torch.equal(after["new"], made)
