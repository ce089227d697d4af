"""A training run: what it is about, how far it has come (its report at the end), and what it needs to continue."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.training.ema import EMA
from pipeline.data.loading import TrainLoader
from pipeline.machine.distributed import first_alone, rank
from pipeline.machine.runtime import Runtime
from pipeline.machine.snapshots import Scratch
from pipeline.models.model_folder import CURVES, VALIDATION
from pipeline.training.sharding import Shares

Validation = Callable[[], Iterator[tuple[int, Batch]]]  # this process's batches, with their numbers


@dataclass(frozen=True)
class TrainRun:
    """What a phase gives its training loop.

    Attributes:
        name: of the run, for its lines and its snapshots.
        model: already frozen as wanted.
        train: endless microbatches; their size is theirs.
        validation: gives the validation batches.
        out: folder of ``curves.csv``.
        save: writes the model as it stands; called with the averaged weights in place.
        runtime: device and precision.
        rate: multiplier of the optimizer's learning rates (``pipeline.training.rate_search``).
        trials: trainings of this model, one after the other, of which this is one.
    """

    name: str
    model: Model
    train: TrainLoader
    validation: Validation
    out: Path
    save: Callable[[], None]
    runtime: Runtime
    rate: float = 1.0
    trials: int = 1


@dataclass
class TrainState:
    """Numbers of a run, finished or not.

    Attributes:
        steps: optimizer steps taken (fewer than asked for after an early stop).
        flops_per_step: floating-point operations of one, on average over the run that was planned.
        best_step: step of the best validation loss, the one that was saved.
        best_loss: that loss (last recursion step, nats per answer token).
        stopped: patience ran out.
        validation: one entry per validation: step, loss, loss of each recursion step.
    """

    steps: int = 0
    flops_per_step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    stopped: bool = False
    validation: list[dict[str, Any]] = field(default_factory=list)

    @property
    def flops(self) -> int:
        """Floating-point operations of all steps."""
        return self.steps * self.flops_per_step

    def worse(self) -> int:
        """Validations since the best one."""
        return sum(1 for entry in self.validation if entry["step"] > self.best_step)


class FitOfSteps(Protocol):
    """Interface of a training loop that is told how many steps to take."""

    def __call__(self, run: TrainRun, *, steps: int) -> TrainState: ...


def tensors_of(shares: Shares, optimizer: torch.optim.Optimizer, average: EMA) -> dict[str, Tensor]:
    """Collect the tensors that the next step depends on, as this process holds them: weights, average and moments."""
    tensors: dict[str, Tensor] = {f"parameter/{name}": parameter for name, parameter in shares.parameters.items()}
    tensors |= {f"average/{i}": value for i, value in enumerate(average.average)}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{name}": value for name, value in state.items()}
    return tensors


def _owners(shares: Shares, optimizer: torch.optim.Optimizer) -> Callable[[str], str]:
    """Entry of a snapshot -> name of the parameter that it belongs to."""
    names = list(shares.parameters)
    by_id = {id(parameter): name for name, parameter in shares.parameters.items()}
    moved = [by_id[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]

    def owner(entry: str) -> str:
        kind, _, rest = entry.partition("/")
        return rest if kind == "parameter" else (names if kind == "average" else moved)[int(rest.partition("/")[0])]

    return owner


def numbers_of(average: EMA, result: TrainState, train: TrainLoader, accumulation: int) -> dict[str, Any]:
    """Collect the numbers that the next step depends on: how far the run is, and the order of examples."""
    order = train.state_dict(result.steps, accumulation)
    return {"fit": asdict(result), "average_updates": average.updates, "order": order}


def keep(
    result: TrainState,
    scratch: Scratch,
    out: Path,
    shares: Shares,
    optimizer: torch.optim.Optimizer,
    average: EMA,
    train: TrainLoader,
    accumulation: int,
) -> None:
    """Write a snapshot of a run as it stands. All processes must call it."""
    owner, tensors = _owners(shares, optimizer), tensors_of(shares, optimizer, average)
    parts = {entry: tensor for entry, tensor in tensors.items() if shares.is_part(owner(entry), tensor)}
    if parts or rank() == 0:
        whole = {entry: tensor for entry, tensor in tensors.items() if entry not in parts}
        scratch.save(result.steps, whole, numbers_of(average, result, train, accumulation), out, parts)


@torch.no_grad()
def resume(
    scratch: Scratch,
    out: Path,
    shares: Shares,
    optimizer: torch.optim.Optimizer,
    average: EMA,
    train: TrainLoader,
    accumulation: int,
) -> TrainState:
    """Put the newest whole snapshot back, in every process what it holds of it; a fresh ``TrainState`` if there is none.

    Raises:
        DataError: it belongs to another order of examples.
    """
    owner = _owners(shares, optimizer)
    with first_alone():
        snapshot = scratch.load(None if rank() else out, lambda entry, tensor: shares.cut(owner(entry), tensor))
        if snapshot is None and rank() == 0:
            (out / CURVES).unlink(missing_ok=True)
            (out / VALIDATION).unlink(missing_ok=True)
    if snapshot is None:
        return TrainState()
    tensors, numbers = snapshot
    train.load_state_dict(numbers["order"], accumulation)
    for name, parameter in shares.parameters.items():
        parameter.copy_(tensors[f"parameter/{name}"])
    for i, value in enumerate(average.average):
        value.copy_(tensors[f"average/{i}"])
    average.updates = numbers["average_updates"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainState(**numbers["fit"])
