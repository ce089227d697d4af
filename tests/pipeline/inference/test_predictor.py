"""What a sampler asks a model: logits of the last step, for what is queried."""

import pytest
import torch

from components.batch import Batch
from components.inference import halting
from components.model import Model
from components.recursion import State
from components.refiners.core import Layout
from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import ConfigError
from pipeline.inference.predictor import predictor, reader

MASK = 9
VOCABULARY = Vocabulary(10, MASK, 8, 3, "text")


class Watched(Model):
    """Two steps whose states are the step's number; remembers its batches."""

    n_steps = 2

    def __init__(self):
        super().__init__()
        self.seen = []

    def begin(self, batch, positions=None):
        self.seen.append(batch)
        return {}, {"hidden": torch.zeros(*batch.tokens.shape, 10)}, Layout()

    def step(self, number, carry, condition, layout, statistics=False):
        return State(carry["hidden"] + number + 1, carry)

    def readout(self, state):
        return state


@pytest.fixture
def batch():
    tokens = torch.tensor([[1, MASK, MASK]])
    return Batch(tokens, tokens, tokens == MASK, torch.zeros(1, 3), rows=torch.tensor([1, 2]))


def test_the_last_step_predicts_what_is_wanted(batch, runtime):
    model = Watched()
    predict = predictor(model, batch, VOCABULARY, runtime)
    tokens = torch.tensor([[1, 4, MASK]])
    assert predict(tokens, tokens == MASK)[:, 0].tolist() == [2]
    assert model.seen[0].tokens.tolist() == [[1, 4, MASK]] and model.seen[0].supervised.tolist() == [2]


def test_decided_tokens_are_predicted_too_where_they_are_wanted(batch, runtime):
    model = Watched()
    predict = predictor(model, batch, VOCABULARY, runtime)
    assert predict(torch.tensor([[1, 4, MASK]]), batch.masked)[:, 0].tolist() == [2, 2]
    assert model.seen[0].masked.tolist() == [[False, False, True]]


def test_what_a_sampler_hides_of_the_prompt_is_no_answer(batch, runtime):
    model = Watched()
    predictor(model, batch, VOCABULARY, runtime)(torch.tensor([[MASK, MASK, 5]]), batch.masked)
    assert model.seen[0].masked.tolist() == [[False, True, False]]


def test_a_rule_ends_the_recursion(batch, runtime):
    def at_once(model, batch, state, last):
        return torch.ones(len(batch), dtype=torch.bool)

    assert (predictor(Watched(), batch, VOCABULARY, runtime, at_once)(batch.tokens, batch.masked) == 1).all()
    with pytest.raises(ConfigError, match=r"generation.Generator.halt: halting.by_learning needs a core"):
        predictor(Watched(), batch, VOCABULARY, runtime, halting.by_learning)(batch.tokens, batch.masked)


def test_a_prefix_is_asked_in_the_models_place_or_refused(batch, runtime):
    def prefix(model, batch, blocks):
        if blocks == 1:
            raise ValueError("it is too small")
        return lambda tokens, queried: tokens[queried] * blocks

    predict = predictor(Watched(), batch, VOCABULARY, runtime, prefix=prefix, blocks=2)
    assert predict(torch.tensor([[1, 4, 6]]), batch.masked).tolist() == [8, 12]
    with pytest.raises(ConfigError, match="takes no approximate prefix: it is too small; set it to None"):
        predictor(Watched(), batch, VOCABULARY, runtime, prefix=prefix)


def test_what_is_not_written_decides_nothing_of_a_causal_models_next_token(runtime):
    class Next(Watched):
        """Its logits at a place are those of that place's token, one higher."""

        def states(self, batch):
            self.seen.append(batch)
            return torch.nn.functional.one_hot(batch.tokens + 1, 12).float()

    tokens = torch.tensor([[1, 5, 11, 11], [1, 11, 11, 11]])
    batch, model = Batch(tokens, tokens, tokens == 11, torch.zeros(2, 4)), Next()
    read = reader(model, batch, Vocabulary(11, 11, 8, 4, "text", causal=True), runtime)
    logits = read(tokens, torch.tensor([2, 1]), torch.tensor([0, 1]))
    assert logits.shape == (2, 12) and model.seen[0].tokens.tolist() == [[1, 5], [1, 8]]
    assert logits.argmax(-1).tolist() == [6, 2]
