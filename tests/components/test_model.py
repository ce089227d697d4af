import torch

from components.batch import Batch
from components.model import Model
from components.recursion import State


class Counting(Model):
    """Three steps that add one; counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def steps(self, batch, *, statistics=False):
        self.asked += 1
        for k in (1, 2, 3):
            yield State(batch.hidden + k)


def test_states_are_the_last_of_steps_from_one_run():
    tokens, model = torch.zeros(2, 3, dtype=torch.long), Counting()
    batch = Batch(tokens, tokens, tokens == 0, tokens.float(), hidden=torch.randn(2, 3, 4))
    assert torch.equal(model.states(batch), batch.hidden + 3)
    assert model.asked == 1
