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
from pipeline.training.train_state import TrainState, numbers_of, resume, tensors_of


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


def run(seed, steps=0):
    """What a snapshot is made of and goes back into."""
    model, *rest = state(seed, steps)
    return trainable(model), *rest


def snapshot_of(trained, result):
    """Tensors and numbers of a run of two microbatches a step."""
    return tensors_of(*trained), numbers_of(trained[2], result, DeterministicSampler(), 2)


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
    Scratch(tmp_path / "scratch").save(3, *snapshot_of((trainable(model), optimizer, average), result), tmp_path / "out")
    other, its_optimizer, its_average = state(seed=1, optimizer=chosen)
    other.frozen.data.copy_(model.frozen)
    found = resume(
        Scratch(tmp_path / "scratch"), tmp_path / "out", trainable(other), its_optimizer, its_average, DeterministicSampler(), 2
    )
    assert found == result
    for _ in range(2):
        step(model, optimizer, average)
        step(other, its_optimizer, its_average)
        assert torch.equal(model.trained, other.trained) and torch.equal(model.scale, other.scale)
        assert all(torch.equal(a, b) for a, b in zip(average.average, its_average.average, strict=True))


def test_frozen_weights_are_not_part_of_it():
    tensors = tensors_of(*run(seed=0, steps=1))
    assert "parameter/trained" in tensors and "parameter/frozen" not in tensors


def test_without_a_snapshot_a_run_begins_anew(tmp_path):
    (tmp_path / "curves.csv").write_text("step,loss\n0,1\n")
    assert resume(Scratch(tmp_path / "none"), tmp_path, *run(seed=0), DeterministicSampler(), 1) == TrainState()
    assert not (tmp_path / "curves.csv").exists()


@pytest.mark.parametrize(("order", "accumulation"), [(DeterministicSampler(seed=1), 2), (DeterministicSampler(), 3)])
def test_a_snapshot_of_another_order_of_examples_is_refused(tmp_path, order, accumulation):
    snapshot = snapshot_of(run(seed=0, steps=3), TrainState(steps=3))
    assert snapshot[1]["order"] == {"step": 3, "accumulation": 2, "seed": 0}
    (tmp_path / "out").mkdir()
    Scratch(tmp_path / "scratch").save(3, *snapshot, tmp_path / "out")
    with pytest.raises(DataError, match="another order"):
        resume(Scratch(tmp_path / "scratch"), tmp_path / "out", *run(seed=0), order, accumulation)


def test_other_processes_resume_without_touching_files(tmp_path, monkeypatch):
    trained = run(seed=0, steps=3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/curves.csv").write_text("saved")
    Scratch(tmp_path / "scratch").save(3, *snapshot_of(trained, TrainState(steps=3)), tmp_path / "out")
    (tmp_path / "out/curves.csv").write_text("later")
    monkeypatch.setenv("RANK", "1")
    shares, *rest = run(seed=0)
    assert resume(Scratch(tmp_path / "scratch"), tmp_path / "out", shares, *rest, DeterministicSampler(), 2) == TrainState(steps=3)
    assert torch.equal(shares.parameters["trained"], trained[0].parameters["trained"])
    assert resume(Scratch(tmp_path / "none"), tmp_path / "out", *run(seed=0), DeterministicSampler(), 2) == TrainState()
    assert (tmp_path / "out/curves.csv").read_text() == "later"


def test_patience_counts_validations_since_the_best():
    entries = [{"step": step, "loss": 1.0} for step in (2, 4, 6)]
    assert TrainState(best_step=2, validation=entries).worse() == 2
    assert TrainState(best_step=6, validation=entries).worse() == 0


def test_compute_is_steps_times_the_cost_of_one():
    assert TrainState(steps=3, flops_per_step=7).flops == 21
    assert TrainState().best_loss == math.inf
