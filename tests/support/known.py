"""Models whose answers are known: they read them off the batch."""

import torch
from torch.nn import functional as F

from components.model import Model
from components.recursion import State
from components.refiners.core import Layout


class Known(Model):
    """Reads the answers off the batch; wrong at examples of ``wrong`` before its last step, of ``always_wrong`` at every one."""

    def __init__(self, vocabulary, steps=1, wrong=(), always_wrong=()):
        super().__init__()
        self.vocabulary, self.n_steps, self.wrong, self.always = vocabulary, steps, list(wrong), list(always_wrong)

    def begin(self, batch, positions=None):
        return {"targets": batch.targets}, {}, Layout(batch.attention)

    def step(self, number, carry, condition, layout, statistics=False):
        ids = condition["targets"].clone()
        mistaken = self.always + (self.wrong if number < self.n_steps - 1 else [])
        at_fault = torch.isin(ids[:, 0], torch.tensor(mistaken, dtype=torch.long))
        ids[at_fault, -1] = (ids[at_fault, -1] + 1) % 50  # one token of the answer
        measured = {"delta": torch.tensor(float(number))} if statistics and self.n_steps > 1 else {}
        return State(F.one_hot(ids, self.vocabulary.size).float() * 50, statistics=measured)

    def readout(self, state):
        return state
