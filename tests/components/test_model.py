import weakref
from functools import partial

import pytest
import torch
from torch import nn

from components.backbones.sentence_table import SentenceTable
from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.model import Carry, Model
from components.recursion import State
from components.refiners.core import Layout
from tests.support import cores


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


@pytest.mark.parametrize(("own", "asked", "taken"), [(3, 5, 5), (3, None, 3), (3, 1, 1), (1, 5, 1)])
def test_the_number_of_steps_is_set_where_there_are_several(batch, own, asked, taken):
    model = Counting()
    model.n_steps = own
    model.set_steps(asked)
    assert model.n_steps == len(list(model.steps(batch))) == taken


def test_no_step_at_all_cannot_be_set():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        Counting().set_steps(0)


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


# Models that are called


def table():
    """A table of sentences, filled."""
    made = SentenceTable(cores.VOCAB, cores.SEQ, cores.DIM)
    for name, buffer in made.named_buffers():
        if "normaliser" not in name:
            nn.init.normal_(buffer, generator=torch.Generator().manual_seed(len(name)))
    return made.double()


def tiny():
    model = TinyLM(cores.VOCAB, cores.SEQ, cores.DIM, cores.LAYERS, cores.HEADS)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.double()


MODELS = {"tiny": tiny, "sentences": table, **{name: partial(cores.model_of, name) for name in cores.CORES}}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@every_model
def test_logits_of_a_call_are_readouts_of_the_steps(make):
    model, batch = make().train(), cores.batch()
    expected = [model.readout(state.hidden) for state in model.steps(batch)]
    _, outputs = model(model.initial_carry(batch), batch)
    assert len(outputs["intermediate_logits"]) == model.n_steps and outputs["intermediate_logits"][-1] is outputs["logits"]
    assert all(torch.equal(ours, plain) for ours, plain in zip(outputs["intermediate_logits"], expected, strict=True))
    _, outputs = model.eval()(model.initial_carry(batch), batch)
    assert set(outputs) == {"logits"} and torch.equal(outputs["logits"], expected[-1])


@every_model
def test_the_recursion_goes_on_from_the_carry_of_a_call(make):
    model, batch = make().eval(), cores.batch()
    expected = [model.readout(state.hidden) for state in model.steps(batch, steps=2 * model.n_steps)]
    carry, _ = model(model.initial_carry(batch), batch)
    carry, outputs = model(carry, batch, enable_deep_supervision=True)
    assert carry.steps == 2 * model.n_steps
    for ours, plain in zip(outputs["intermediate_logits"], expected[model.n_steps :], strict=True):
        assert torch.equal(ours, plain)


def test_a_carry_hands_on_values_and_no_gradient():
    model, batch = cores.model_of("slots"), cores.batch()
    carry, first = model(model.initial_carry(batch), batch)
    assert all(not tensor.requires_grad for tensor in carry.tree.values())
    first["logits"].sum().backward()
    _, second = model(carry, batch)
    second["logits"].sum().backward()  # the graph of the first call is gone, and not needed


def test_in_evaluation_earlier_states_are_dropped_as_the_next_is_made():
    model, batch = cores.model_of("slots").eval(), cores.batch()
    seen, alive = [], []
    step = model.step

    def watched(number, *arguments):
        state = step(number, *arguments)
        alive.append(sum(before() is not None for before in seen))
        seen.append(weakref.ref(state))
        return state

    model.step = watched
    model(model.initial_carry(batch), batch)
    assert alive == [0, 1, 1]
    seen.clear(), alive.clear()
    model(model.initial_carry(batch), batch, enable_deep_supervision=True)
    assert alive == [0, 1, 2]


def test_a_carry_of_another_batch_is_an_error_naming_both_sizes():
    model = cores.model_of("slots")
    with pytest.raises(ValueError, match="a batch of 2 sequences, this one has 3"):
        model(Carry(2), cores.batch())
