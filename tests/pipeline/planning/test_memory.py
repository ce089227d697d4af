"""Bytes on shapes are those that the same computation takes with values."""

import copy
import math
from functools import partial

import pytest
import torch

from components.model import Model
from components.objective.activations import checkpoint, keep
from components.objective.deep_supervision import Supervised
from components.objective.objective import Objective
from pipeline.machine.runtime import Runtime
from pipeline.planning import memory
from pipeline.training.gradients import accumulate
from tests.support import cores

META = torch.device("meta")


def test_weights_are_counted_once_and_by_their_type():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 3).bfloat16(), torch.nn.BatchNorm1d(3, affine=False))
    model.append(model[0])
    assert memory.weights(model) == 4 * 20 + 2 * 18 + 2 * 4 * 3 + 8


@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
def test_partial_sums_over_microbatches_are_counted(microbatches):
    """A tree over n of them holds log2 n sums beside the newest gradient, on shapes as with values."""
    wide = torch.nn.Linear(200, 200, bias=False)  # of which gradients are nearly all that there is

    class Wide(Model):
        n_steps = 1

        def __init__(self):
            super().__init__()
            self.inner = wide

    def gradient(model, batch, **_):
        model.inner(torch.ones(1, 200, device=model.inner.weight.device)).sum().backward()
        zero = torch.zeros((), device=model.inner.weight.device)
        return Supervised(zero, [zero], [{}])

    model, batch = Wide(), cores.batch()
    peaks = []
    for on in ("cpu", "meta"):
        objective = Objective(1)
        objective.gradient = gradient
        work = partial(
            accumulate, copy.deepcopy(model).to(on), objective, [batch] * microbatches, Runtime(threads=1), sequences=8, seed=0,
            step=0, progress=1.0, statistics=False,
        )  # fmt: skip
        peaks.append(memory.peak(work))
    assert peaks[0] == peaks[1]
    assert peaks[0] / wide.weight.nbytes == pytest.approx(1 + math.log2(microbatches), abs=0.1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_nothing_holds_any_more_is_not_counted(device):
    def work():
        a = torch.ones(100, 10, device=device)
        b = a * 2
        c = a @ b.T  # 4,000 + 4,000 + 40,000 bytes
        del a, b
        return c.view(-1)[:7] + 1

    assert memory.peak(work) == 48_000


@pytest.mark.parametrize("activations", [keep, checkpoint])
def test_a_training_step_takes_on_shapes_what_it_takes(activations):
    model, batch = cores.model_of("slots", dtype=torch.float32), cores.batch()
    shapes = copy.deepcopy(model).to(META)

    def step(model, batch):
        objective = Objective(model.n_steps, activations=activations)
        return lambda: objective.gradient(model, batch, sequences=len(batch))

    really, reckoned = memory.peak(step(model, batch)), memory.peak(step(shapes, batch.to(META)))
    assert reckoned == pytest.approx(really, rel=0.05)
    assert memory.peak(step(shapes, batch.to(META))) <= reckoned


def test_recomputation_takes_less():
    model, batch = cores.model_of("slots", dtype=torch.float32).to(META), cores.batch().to(META)
    objectives = (Objective(model.n_steps, activations=activations) for activations in (keep, checkpoint))
    kept, made_again = (memory.peak(lambda o=o: o.gradient(model, batch, sequences=len(batch))) for o in objectives)
    assert made_again < 0.8 * kept
