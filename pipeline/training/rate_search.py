"""A learning rate chosen on validation: the same training once for each rate of a grid, and the best of the models stays.

What a finished training came to waits in scratch, so that a killed search repeats none of them; of a rate that is too high for
training to go on there is nothing but the reason.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import TrainingError
from pipeline.files import read_json, write_json
from pipeline.machine import snapshots
from pipeline.machine.distributed import barrier, rank
from pipeline.models.model_folder import UNFINISHED
from pipeline.training.train_state import TrainRun, TrainState

RESULT = "result.json"  # of a training that has ended; written last


@dataclass(frozen=True)
class Search:
    """The trainings of a grid of learning rates, and the best of them.

    Attributes:
        rates: multipliers of the optimizer's rates.
        states: what each came to; None where training could not go on.
    """

    rates: Sequence[float]
    states: Sequence[TrainState | None]

    @property
    def best(self) -> int:
        """Find the number of the rate with the least validation loss; the first of several."""
        losses = {number: state.best_loss for number, state in enumerate(self.states) if state is not None}
        return min(losses, key=lambda number: losses[number])

    @property
    def result(self) -> TrainState:
        """Return what the best training came to."""
        state = self.states[self.best]
        assert state is not None
        return state

    def facts(self) -> dict[str, Any]:
        """Tell what stands in ``metrics.json``: every rate with its validations, and all operations; nothing of no search."""
        if tuple(self.rates) == (1.0,):
            return {}
        trials = [
            {"rate": rate, "best_loss": None if state is None else state.best_loss, "flops": 0 if state is None else state.flops,
             "validation": [] if state is None else state.validation}
            for rate, state in zip(self.rates, self.states, strict=True)
        ]  # fmt: skip
        return {"rate": self.rates[self.best], "rates": trials, "search_flops": sum(trial["flops"] for trial in trials)}


def search(run: TrainRun, rates: Sequence[float], fit: Callable[[TrainRun], TrainState]) -> Search:
    """Train once with each multiplier of the learning rates and leave the model of the least validation loss in ``run.out``.

    A loop that takes no step is run once: no rate makes a difference to it.

    Args:
        run: what is trained; its weights begin anew for each rate.
        rates: multipliers, at least one.
        fit: the training loop.

    Raises:
        TrainingError: training could go on with none of the rates.
    """
    if len(rates) == 1:
        return Search(rates, [fit(replace(run, rate=rates[0]))])
    start = {name: weight.detach().clone() for name, weight in run.model.named_parameters() if weight.requires_grad}
    states: list[TrainState | None] = []
    with _results(run.name) as folder:
        for number, rate in enumerate(rates):
            _begin_anew(run, start)
            last = number + 1 == len(rates) and not any(states)
            states.append(
                _trial(
                    replace(run, name=f"{run.name}/rate-{rate:g}", rate=rate, trials=len(rates)),
                    folder / str(number),
                    fit,
                    last=last,
                )
            )
            if states[0] is not None and not states[0].steps:
                return Search((1.0,), states)
        searched = Search(rates, states)
        if not rank():
            _copied(folder / str(searched.best), run.out)
    return searched


def _trial(run: TrainRun, folder: Path, fit: Callable[[TrainRun], TrainState], *, last: bool) -> TrainState | None:
    """Train with one rate, or read what that came to before the search was killed; ``last``: there is no other to fall back on."""
    if (folder / RESULT).is_file():
        content = read_json(folder / RESULT, "controls")
        return TrainState(**content["state"]) if content["state"] else None
    state: TrainState | None
    try:
        state = fit(run)
    except TrainingError as error:
        if last:
            raise
        print(f"{error}; the search goes on without this rate", flush=True)
        state = None
    barrier()
    if rank():
        return state
    _copied(run.out, folder)
    write_json(folder / RESULT, {"state": asdict(state) if state is not None else None})
    if (work := snapshots.folder(run.name)) is not None:
        shutil.rmtree(work, ignore_errors=True)
    return state


@torch.no_grad()
def _begin_anew(run: TrainRun, start: Mapping[str, torch.Tensor]) -> None:
    for name, weight in run.model.named_parameters():
        if name in start:
            weight.copy_(start[name])


@contextlib.contextmanager
def _results(name: str) -> Iterator[Path]:
    """A folder for what trainings came to: in the stage's scratch, where there is one."""
    if (folder := snapshots.folder(f"{name}/rates")) is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def _copied(source: Path, target: Path) -> None:
    """Copy what a training left: its model and curves."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in (UNFINISHED, RESULT):
            shutil.copyfile(file, target / file.name)
