import pytest
import torch
from torch import nn

from components.batch import Batch
from components.model import Model
from components.recursion import State
from components.refiners.core import Layout


class Counting(Model):
    """Steps that add their number from 1; counts how often it begins."""

    n_steps = 3

    def __init__(self):
        super().__init__()
        self.begun, self.asked, self.head = 0, [], nn.Linear(4, 5, bias=False)

    def begin(self, batch, positions=None):
        self.begun += 1
        return {"one": torch.ones(len(batch))}, {"hidden": batch.hidden}, Layout(batch.attention, positions)

    def step(self, number, carry, condition, layout, statistics=False):
        self.asked.append((number, layout.positions, statistics))
        hidden = carry["hidden"] + (number + 1) * condition["one"][:, None, None]
        return State(hidden, {"hidden": hidden})

    def normed(self, state):
        return state / 2


@pytest.fixture
def batch():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    return Batch(tokens, tokens, tokens == 0, tokens.float(), hidden=torch.zeros(2, 3, 4))


def test_states_are_the_last_of_steps_from_one_run(batch):
    model = Counting()
    assert torch.equal(model.states(batch), batch.hidden + 6)
    assert model.begun == 1 and [number for number, *_ in model.asked] == [0, 1, 2]


def test_every_step_starts_from_what_the_last_handed_on(batch):
    assert [state.hidden.unique().tolist() for state in Counting().steps(batch)] == [[1], [3], [6]]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_another_number_of_steps_can_be_asked_for(batch, steps):
    assert len(list(Counting().steps(batch, steps=steps))) == steps


@pytest.mark.parametrize("steps", [0, -1])
def test_no_step_at_all_is_an_error_naming_the_number(batch, steps):
    with pytest.raises(ValueError, match=rf"at least 1 step, got {steps}$"):
        next(Counting().steps(batch, steps=steps))


def test_steps_run_only_as_they_are_asked_for(batch):
    model = Counting()
    states = model.steps(batch)
    assert model.begun == 0
    next(states)
    next(states)
    assert len(model.asked) == 2


def test_positions_and_statistics_reach_every_step(batch):
    model, positions = Counting(), batch.masked
    list(model.steps(batch, positions=positions, statistics=True))
    assert all(layout is positions and statistics for _, layout, statistics in model.asked)


def test_readout_is_the_head_of_normed_states():
    model, rows = Counting(), torch.randn(7, 4)
    torch.testing.assert_close(model.readout(rows), rows @ model.head.weight.T / 2)
