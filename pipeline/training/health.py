"""The diagnosis of a run while it goes on: each symptom once, as part of one line after a validation."""

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

from pipeline.diagnosis import diagnosis, recorded
from pipeline.diagnosis.training_run import Run, Validation
from pipeline.errors import DataError
from pipeline.models.model_folder import CURVES
from pipeline.training.train_state import TrainRun, TrainState

T = TypeVar("T")


class Health:
    """Watches a training run: how long it waits for batches, and what its curves and validations show.

    Args:
        run: that is watched.
        clip: largest gradient norm; 0 = off.
    """

    def __init__(self, run: TrainRun, clip: float) -> None:
        self.run, self.clip = run, clip
        self._began = self._waited = 0.0
        self._said: set[str] = set()

    def waited(self, batches: Iterator[T]) -> T:
        """Return the next batch; the time until it is there counts where the device has run out of work by then."""
        asked_at = time.monotonic()
        batch, device = next(batches), self.run.runtime.device
        now = time.monotonic()
        if not self._began:  # readers start with the first
            self._began = now
        elif device.type != "cuda" or torch.cuda.current_stream(device).query():
            self._waited += now - asked_at
        return batch

    def news(self, result: TrainState, planned: int) -> str:
        """Name what is wrong and was not named before; "" if there is nothing.

        Args:
            result: how far the run is.
            planned: optimizer steps of the whole run.
        """
        try:
            columns = recorded.columns(self.run.out / CURVES)
        except DataError:  # of a damaged file others will speak: a diagnosis stops no training
            return ""
        validations = [Validation(entry["step"], entry["loss_by_step"]) for entry in result.validation]
        share = self._waited / max(1e-9, time.monotonic() - self._began)
        now = Run(
            self.run.name, columns, validations, planned, ended=result.steps == planned,
            clip=self.clip, unit=recorded.states_size(self.run.out), waited=share,
        )  # fmt: skip
        fresh = [finding for finding in diagnosis.of_run(now) if finding.name not in self._said]
        self._said |= {finding.name for finding in fresh}
        return "; ".join(f"{finding.name} ({finding.evidence})" for finding in fresh)
