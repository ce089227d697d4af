"""Halting: each sequence leaves with the state that the whole recursion had at that step, and the rules say what they promise."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from components.inference.halting import Leaving, by_change, by_learning, by_probability, halted
from components.recursion import State
from tests.support.cores import ATTENTION, DIM, SEQ, batch, every_core_with_one, model_of

MODEL = model_of("mlp")  # of rules that do not look at it
LEAVING = {
    "mixed": [3, 1, 2, 9, 1, 2], "two_leave": [2, 9, 9, 9, 9, 1], "at_once": [1, 1, 1, 1, 1, 1], "never": [9, 9, 9, 9, 9, 9]
}  # fmt: skip


def numbered():
    """Six padded sequences that can be told apart by their first tokens."""
    whole = batch(sequences=6)
    tokens = whole.tokens.clone()
    tokens[:, 0] = torch.arange(6)
    return replace(whole, tokens=tokens)


def dictated(leaving, seen=None):
    """A rule by which sequence i leaves after step ``leaving[i]``."""
    steps = iter(range(1, 100))

    def rule(model, batch, state, last):
        if seen is not None:
            seen.append((batch, state, last))
        return torch.tensor(leaving)[batch.tokens[:, 0]] <= next(steps)

    return rule


# The recursion


@every_core_with_one("leaving", LEAVING, whole=("slots", "recursive_cycles", "cascade"))
def test_each_sequence_has_the_state_of_the_whole_recursion_where_it_left(name, leaving):
    model, whole = model_of(name), numbered()
    expected = [state.hidden for state in model.steps(whole)]
    hidden, steps = halted(model, whole, dictated(leaving))
    assert steps.tolist() == [min(step, model.n_steps) for step in leaving]
    for row, step in enumerate(steps.tolist()):
        torch.testing.assert_close(hidden[row], expected[step - 1][row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["slots", "recursive_cycles", "hybrid", "standalone"])
def test_a_rule_sees_those_who_are_left_now_and_a_step_before(name):
    model, whole, seen = model_of(name), numbered(), []
    expected = list(model.steps(whole))
    halted(model, whole, dictated([3, 1, 2, 9, 1, 2], seen))
    left = [[0, 1, 2, 3, 4, 5], [0, 2, 3, 5], [0, 3]][: model.n_steps]
    assert len(seen) == len(left)
    for number, (rows, (given, state, last)) in enumerate(zip(left, seen, strict=True)):
        assert given.tokens[:, 0].tolist() == rows
        assert torch.equal(given.masked, whole.masked[rows]) and torch.equal(given.attention, whole.attention[rows])
        torch.testing.assert_close(state.hidden, expected[number].hidden[rows], rtol=1e-10, atol=1e-10)
        if state.halt is not None:
            torch.testing.assert_close(state.halt, expected[number].halt[rows], rtol=1e-6, atol=1e-6)
        if number:
            torch.testing.assert_close(last.hidden, expected[number - 1].hidden[rows], rtol=1e-10, atol=1e-10)
            assert last.halt is None or torch.allclose(last.halt, expected[number - 1].halt[rows])
        else:
            assert last is None


def test_who_has_left_costs_nothing():
    model, whole, sizes = model_of("slots"), numbered(), []
    model.refiner.delta_in.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    halted(model, whole, dictated([3, 1, 2, 2, 1, 1]))
    halted(model, whole, dictated([1] * 6))
    assert sizes == [6, 3, 1, 6]


@every_core_with_one("leaving", LEAVING, whole=("slots", "recursive_cycles", "cascade"))
def test_beside_the_whole_recursion_each_sequence_leaves_as_it_does_alone(name, leaving):
    model, whole = model_of(name), numbered()
    hidden, steps = halted(model, whole, dictated(leaving))
    with torch.no_grad():
        condition, carry, layout = model.begin(whole)
        beside = Leaving(model, whole, dictated(leaving), condition, carry, layout)
        for number, state in enumerate(model.steps(whole)):
            beside.step(number, state)
    assert torch.equal(beside.hidden, hidden) and torch.equal(beside.taken, steps)


def test_nothing_is_computed_beside_the_whole_recursion_as_long_as_all_are_there():
    model, whole, sizes = model_of("slots"), numbered(), []
    with torch.no_grad():
        states = list(model.steps(whole))
        begun = model.begin(whole)
        model.refiner.delta_in.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
        for leaving in ([9] * 6, [2] * 6, [3, 2, 2, 2, 2, 3]):
            beside = Leaving(model, whole, dictated(leaving), *begun)
            for number, state in enumerate(states):
                beside.step(number, state)
    assert sizes == [2]  # the two that stay for a third step


@pytest.mark.parametrize("asked", [1, 2, 5])
def test_another_number_of_steps_is_the_most(asked):
    model, whole = model_of("slots"), numbered()
    hidden, steps = halted(model, whole, dictated([4, 1, 9, 9, 9, 9]), asked)
    assert steps.tolist() == [min(4, asked), 1, *([asked] * 4)]
    torch.testing.assert_close(hidden[2:], list(model.steps(whole, steps=asked))[-1].hidden[2:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("asked", [0, -1])
def test_no_step_at_all_is_an_error_naming_the_number(asked):
    with pytest.raises(ValueError, match=rf"at least 1 step, got {asked}$"):
        halted(model_of("slots"), numbered(), by_change, asked)


def test_nothing_holds_a_graph():
    hidden, _ = halted(model_of("slots"), numbered(), by_change)
    assert not hidden.requires_grad


# Rules


def first_done(model, whole, done):
    """The step after which ``done(step, row)`` first holds, for each sequence; the last step if never."""
    numbers = range(1, model.n_steps + 1)
    return [next((k for k in numbers if done(k - 1, row)), model.n_steps) for row in range(len(whole))]


@every_core_with_one(
    "threshold",
    {str(value): value for value in (0.5, 0.0, 1.0, 0.3, 0.7)},
    whole=("slots",),
    cores=("recursive", "mlp", "standalone"),
)
def test_by_probability_every_masked_token_must_be_sure(name, threshold):
    model, whole = model_of(name), numbered()
    sure = [model.readout(state.hidden).softmax(-1).amax(-1) > threshold for state in model.steps(whole)]
    _, steps = halted(model, whole, partial(by_probability, threshold=threshold))
    assert steps.tolist() == first_done(model, whole, lambda k, row: bool(sure[k][row][whole.masked[row]].all()))


def test_by_probability_a_sequence_halts_as_soon_as_its_least_sure_token_lets_it():
    """Just above that token's probability it stays, just below it leaves: other sequences have no say."""
    model, whole = model_of("slots"), numbered()
    state = next(iter(model.steps(whole)))
    least = model.readout(state.hidden).softmax(-1).amax(-1).masked_fill(~whole.masked, 1.0).amin(1).tolist()
    assert len(set(least)) == 6
    for bound in least:
        for threshold in (bound - 1e-4, bound + 1e-4):
            found = by_probability(model, whole, state, None, threshold)
            assert found.tolist() == [value > threshold for value in least]


def test_by_probability_who_has_nothing_masked_is_done():
    whole = numbered()
    masked = whole.masked.clone()
    masked[2] = False
    _, steps = halted(model_of("slots"), replace(whole, masked=masked), partial(by_probability, threshold=1.0))
    assert steps.tolist() == [3, 3, 1, 3, 3, 3]


def change(states, k, row, attention):
    """Root mean square of a step's change over that of the states, of the tokens of one sequence."""
    kept = attention[row]
    moved, size = states[k][row][kept] - states[k - 1][row][kept], states[k][row][kept]
    return (moved.square().mean() / size.square().mean()).sqrt().item()


@pytest.mark.parametrize("name", ["slots", "recursive", "cascade", "standalone_updates"])
def test_by_change_a_sequence_has_converged_when_it_moves_less_than_the_tolerance(name):
    model, whole = model_of(name), numbered()
    states = [state.hidden for state in model.steps(whole)]
    moves = [change(states, 1, row, whole.attention) for row in range(6)]
    tolerances = [0.0, 1e9, *(factor * move for move in moves for factor in (0.999, 1.001))]
    for tolerance in tolerances:
        _, steps = halted(model, whole, partial(by_change, tolerance=tolerance))
        expected = first_done(model, whole, lambda k, row, t=tolerance: k > 0 and change(states, k, row, whole.attention) < t)
        assert steps.tolist() == expected


@pytest.mark.parametrize("fill", [0.0, 1.0, 1e3])
def test_by_change_padding_counts_for_nothing(fill):
    g = torch.Generator().manual_seed(0)
    whole, last = batch(), torch.randn(3, SEQ, DIM, generator=g)
    hidden = last + 0.05 * torch.randn(3, SEQ, DIM, generator=g)
    hidden[~ATTENTION] = fill * hidden[~ATTENTION]
    for tolerance, done in ((0.03, [False] * 3), (0.08, [True] * 3)):
        assert by_change(MODEL, whole, State(hidden), State(last), tolerance).tolist() == done


def test_by_change_without_padding_every_token_counts():
    whole = replace(batch(), attention=None)
    last = torch.ones(3, SEQ, DIM)
    hidden = last.clone()
    hidden[1, -1] = 2
    assert by_change(MODEL, whole, State(hidden), State(last)).tolist() == [True, False, True]


def test_by_change_nothing_has_converged_after_one_step():
    assert not by_change(MODEL, batch(), State(torch.ones(3, SEQ, DIM)), None, 1e9).any()


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
def test_by_learning_the_models_own_word_counts(threshold):
    model, whole = model_of("recursive_cycles"), numbered()
    words = [state.halt.sigmoid().tolist() for state in model.steps(whole)]
    _, steps = halted(model, whole, partial(by_learning, threshold=threshold))
    assert steps.tolist() == first_done(model, whole, lambda k, row: words[k][row] > threshold)


def test_by_learning_asks_for_a_core_that_has_learned_it():
    with pytest.raises(ValueError, match=r"needs a core that learns to halt \(recursive_core.RecursiveCore.halting = True\)"):
        halted(model_of("recursive"), numbered(), by_learning)
