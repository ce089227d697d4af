"""What a run needs to continue: everything that the next step depends on comes back, and nothing else is needed."""

import math

import pytest
import torch
from torch import nn

from components.training.ema import EMA
from components.training.optim import adamw, muon
from pipeline.errors import DataError
from pipeline.machine.snapshots import Scratch
from pipeline.training.sharding import Shares
from pipeline.training.train_state import Training, TrainState


class Half(nn.Module):
    """A model with a frozen and a trained part."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.frozen = nn.Parameter(torch.randn(3, generator=generator), requires_grad=False)
        self.trained = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.scale = nn.Parameter(torch.randn(3, 1, generator=generator))


class DeterministicSampler:
    """As much of the microbatches as a snapshot knows."""

    def __init__(self, seed=0):
        self.seed = seed

    def state_dict(self, step, accumulation):
        return {"step": step, "accumulation": accumulation, "seed": self.seed}

    def load_state_dict(self, state, accumulation):
        if state != self.state_dict(state["step"], accumulation):
            raise DataError("another order")


def state(seed, steps=0, optimizer=adamw):
    model = Half(seed)
    optimizer, average = optimizer(model.named_parameters(), lr=0.1), EMA(model.parameters(), 0.9)
    for _ in range(steps):
        step(model, optimizer, average)
    return model, optimizer, average


def training(model, optimizer, average, order=None, accumulation=2):
    """What a snapshot is made of and goes back into."""
    return Training(trainable(model), optimizer, average, order or DeterministicSampler(), accumulation)


def trainable(model):
    return Shares({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})


def step(model, optimizer, average):
    (model.trained * model.scale - 1).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.update()


@pytest.mark.parametrize("chosen", [adamw, muon])
def test_a_resumed_run_takes_the_same_next_step(tmp_path, chosen):
    model, optimizer, average = state(seed=0, steps=3, optimizer=chosen)
    result = TrainState(steps=3, flops_per_step=7, best_step=2, best_loss=0.5, validation=[{"step": 2, "loss": 0.5}])
    (tmp_path / "out").mkdir()
    training(model, optimizer, average).keep(result, Scratch(tmp_path / "scratch"), tmp_path / "out")
    other, its_optimizer, its_average = state(seed=1, optimizer=chosen)
    other.frozen.data.copy_(model.frozen)
    resumed = training(other, its_optimizer, its_average)
    assert resumed.resume(Scratch(tmp_path / "scratch"), tmp_path / "out") == result
    for _ in range(2):
        step(model, optimizer, average)
        step(other, its_optimizer, its_average)
        assert torch.equal(model.trained, other.trained) and torch.equal(model.scale, other.scale)
        assert all(torch.equal(a, b) for a, b in zip(average.average, its_average.average, strict=True))


def test_frozen_weights_are_not_part_of_it():
    tensors = training(*state(seed=0, steps=1)).tensors()
    assert "parameter/trained" in tensors and "parameter/frozen" not in tensors


def test_without_a_snapshot_a_run_begins_anew(tmp_path):
    (tmp_path / "curves.csv").write_text("step,loss\n0,1\n")
    assert training(*state(seed=0)).resume(Scratch(tmp_path / "none"), tmp_path) == TrainState()
    assert not (tmp_path / "curves.csv").exists()


@pytest.mark.parametrize(("order", "accumulation"), [(DeterministicSampler(seed=1), 2), (DeterministicSampler(), 3)])
def test_a_snapshot_of_another_order_of_examples_is_refused(tmp_path, order, accumulation):
    (tmp_path / "out").mkdir()
    training(*state(seed=0, steps=3)).keep(TrainState(steps=3), Scratch(tmp_path / "scratch"), tmp_path / "out")
    _, numbers = Scratch(tmp_path / "scratch").load(tmp_path / "out")
    assert numbers["order"] == {"step": 3, "accumulation": 2, "seed": 0}
    with pytest.raises(DataError, match="another order"):
        training(*state(seed=0), order, accumulation).resume(Scratch(tmp_path / "scratch"), tmp_path / "out")


def test_other_processes_resume_without_touching_files(tmp_path, monkeypatch):
    first = training(*state(seed=0, steps=3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/curves.csv").write_text("saved")
    first.keep(TrainState(steps=3), Scratch(tmp_path / "scratch"), tmp_path / "out")
    (tmp_path / "out/curves.csv").write_text("later")
    monkeypatch.setenv("RANK", "1")
    second = training(*state(seed=0))
    assert second.resume(Scratch(tmp_path / "scratch"), tmp_path / "out") == TrainState(steps=3)
    assert torch.equal(second.shares.parameters["trained"], first.shares.parameters["trained"])
    assert training(*state(seed=0)).resume(Scratch(tmp_path / "none"), tmp_path / "out") == TrainState()
    assert (tmp_path / "out/curves.csv").read_text() == "later"


def test_patience_counts_validations_since_the_best():
    entries = [{"step": step, "loss": 1.0} for step in (2, 4, 6)]
    assert TrainState(best_step=2, validation=entries).worse() == 2
    assert TrainState(best_step=6, validation=entries).worse() == 0


def test_compute_is_steps_times_the_cost_of_one():
    assert TrainState(steps=3, flops_per_step=7).flops == 21
    assert TrainState().best_loss == math.inf
