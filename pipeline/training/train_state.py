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
from components.training.finiteness import first_non_finite
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


@dataclass(frozen=True)
class Training:
    """What a step of a run moves, and what the next one depends on: a snapshot of it is all that a resumed run needs.

    Attributes:
        shares: the trained parameters, as far as this process holds them.
        optimizer: of these parameters.
        average: of the same.
        train: microbatches, which know the order of examples.
        accumulation: microbatches of an optimizer step, of all processes together.
    """

    shares: Shares
    optimizer: torch.optim.Optimizer
    average: EMA
    train: TrainLoader
    accumulation: int

    def tensors(self) -> dict[str, Tensor]:
        """Collect what this process holds of weights, average and moments."""
        tensors: dict[str, Tensor] = {f"parameter/{name}": parameter for name, parameter in self.shares.parameters.items()}
        tensors |= {f"average/{i}": value for i, value in enumerate(self.average.average)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{name}": value for name, value in state.items()}
        return tensors

    def keep(self, result: TrainState, scratch: Scratch, out: Path) -> None:
        """Write a snapshot of a run as it stands. All processes must call it."""
        owner, tensors = self._owners(), self.tensors()
        parts = {entry: tensor for entry, tensor in tensors.items() if self.shares.is_part(owner(entry), tensor)}
        if parts or rank() == 0:
            whole = {entry: tensor for entry, tensor in tensors.items() if entry not in parts}
            order = self.train.state_dict(result.steps, self.accumulation)
            numbers = {"fit": asdict(result), "average_updates": self.average.updates, "order": order}
            scratch.save(result.steps, whole, numbers, out, parts)

    def keep_alone(self, result: TrainState, scratch: Scratch, out: Path) -> bool:
        """Write a snapshot of a run whose other processes may be elsewhere, if there is none of this step and all is finite.

        Returns:
            Whether this process can: not if each holds a share of what is trained.
        """
        if self.shares.are_parts:
            return False
        if result.steps and not scratch.has(result.steps) and not first_non_finite(self.tensors()):
            self.keep(result, scratch, out)
        return True

    @torch.no_grad()
    def resume(self, scratch: Scratch, out: Path) -> TrainState:
        """Put the newest whole snapshot back, in every process what it holds of it; a fresh ``TrainState`` if there is none.

        Raises:
            DataError: it belongs to another order of examples.
        """
        owner = self._owners()
        with first_alone():
            snapshot = scratch.load(None if rank() else out, lambda entry, tensor: self.shares.cut(owner(entry), tensor))
            if snapshot is None and rank() == 0:
                (out / CURVES).unlink(missing_ok=True)
                (out / VALIDATION).unlink(missing_ok=True)
        if snapshot is None:
            return TrainState()
        tensors, numbers = snapshot
        self.train.load_state_dict(numbers["order"], self.accumulation)
        for name, parameter in self.shares.parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
        for i, value in enumerate(self.average.average):
            value.copy_(tensors[f"average/{i}"])
        self.average.updates = numbers["average_updates"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return TrainState(**numbers["fit"])

    def _owners(self) -> Callable[[str], str]:
        """Entry of a snapshot -> name of the parameter that it belongs to."""
        names = list(self.shares.parameters)
        by_id = {id(parameter): name for name, parameter in self.shares.parameters.items()}
        moved = [by_id[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]

        def owner(entry: str) -> str:
            kind, _, rest = entry.partition("/")
            return rest if kind == "parameter" else (names if kind == "average" else moved)[int(rest.partition("/")[0])]

        return owner
