"""What loading costs warmup (`python -m bench.data --loader`): the real training loop on preset sudoku4 (--quick: smoke), its steps
in turn with batches that are loaded, with batches that a ThreadPoolExecutor's threads load, and with batches that lie in memory, in
blocks of `BLOCK` steps. The first block of each kind is left out.
"""

import contextlib
import io
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from bench.overhead import ROOT, seconds
from bench.pool import pooled_steps
from components.batch import Batch
from pipeline.command_line import SECTIONS
from pipeline.data.loading import TrainLoader
from pipeline.settings import config, params
from pipeline.training import phase, step_operations
from pipeline.training.train_state import TrainRun, TrainState

BLOCK = 10  # steps, few: what else runs on a machine changes; the loop reports as often
HELD = 8  # batches in memory
COUNTED = step_operations.STEPS  # before the first block: over them the loop counts operations
SETTLING = 3  # steps of a block that are not timed: threads have read ahead when a block begins


class Alternating:
    """Stands for the training data: notes when the loop asks for a batch.

    Attributes:
        taken: kind of block -> seconds a step, of every block.
        waited: likewise, seconds a step until its batch was there.
    """

    def __init__(self, training: TrainLoader, pairs: int) -> None:
        self.training, self.pairs, self.seed = training, pairs, training.seed
        self.taken: dict[str, list[float]] = {"loaded": [], "pool": [], "in memory": []}
        self.waited: dict[str, list[float]] = {kind: [] for kind in self.taken}

    def sequences(self, accumulation: int) -> int:
        """Of an optimizer step."""
        return self.training.sequences(accumulation)

    def state_dict(self, step: int, accumulation: int) -> dict[str, Any]:
        """Where training stands."""
        return self.training.state_dict(step, accumulation)

    def steps(self, first: int, accumulation: int) -> Iterator[list[Batch]]:
        """Blocks of steps in turn, one round more than is timed."""
        loaded = self.training.steps(first, accumulation)
        pool = pooled_steps(self.training, first, accumulation, max(1, int(os.environ["SLOTLOOP_READERS"])))
        held = list(islice(loaded, HELD))
        yield from held[:COUNTED]
        for number in range(self.pairs + 1):
            kinds = list(self.taken)
            for kind in kinds[number % 3 :] + kinds[: number % 3]:  # none of them always follows the same other
                moments, waited = [], []
                for step in range(BLOCK):
                    moments.append(time.perf_counter())
                    batches = held[step % HELD] if kind == "in memory" else next(loaded if kind == "loaded" else pool)
                    waited.append(time.perf_counter() - moments[-1])
                    yield batches
                self.taken[kind].append((time.perf_counter() - moments[SETTLING]) / (BLOCK - SETTLING))
                self.waited[kind].append(sum(waited[SETTLING:]) / (BLOCK - SETTLING))
        yield from iter(lambda: held[0], None)


def loader_rows(folder: Path, pairs: int, preset: str) -> list[dict[str, str | float | None]]:
    """A row for every number of reader threads: seconds a step, beside those of steps whose batch is in memory,
    and the share of a step that is spent waiting for its batch.
    """
    space = workspace(folder / preset, preset)
    rows: list[dict[str, str | float | None]] = []
    with contextlib.chdir(space):
        text = config.resolve("warmup", params.read(Path("params.yaml"), SECTIONS), ()).text
        config.load_text(text, "warmup")
        for threads in (0, 1):
            os.environ["SLOTLOOP_READERS"] = str(threads)
            data = _trained(pairs)
            both = list(zip(data.taken["loaded"], data.taken["in memory"], strict=True))[1:]
            engines = [pool / loaded for loaded, pool in zip(data.taken["loaded"], data.taken["pool"], strict=True)][1:]
            waits = zip(data.waited["loaded"], data.taken["loaded"], strict=True)
            ratios = [a / b for a, b in both]
            rows.append({
                "what": f"warmup step of {preset}, {threads} reader thread{'s' * (threads != 1)}",
                "seconds": statistics.median(a for a, _ in both), "seconds_in_memory": statistics.median(b for _, b in both),
                "seconds_vs_in_memory": statistics.median(ratios), "seconds_vs_in_memory_best": min(ratios),
                "speed_vs_pool": statistics.median(engines) if threads else None,
                "waiting_vs_step": statistics.median([waited / step for waited, step in waits][1:]),
            })  # fmt: skip
    return rows


def workspace(folder: Path, preset: str) -> Path:
    """A folder with everything that warmup needs; the backbone is trained for one step, which changes no time of warmup."""
    folder.mkdir()
    (folder / "gin").symlink_to(ROOT / "gin")
    (folder / "params.yaml").write_text(f"preset: {preset}\n")
    for stage, *overrides in (("prepare",), ("backbone", "loop.fit.steps=1"), ("extract",)):
        seconds(folder, "python", "-m", "stages", stage, *overrides, DVC_STAGE=stage)
    return folder


def _trained(pairs: int) -> Alternating:
    """Run the stage with its settings, its loop over alternating data; returns what was noted."""
    found: list[Alternating] = []
    train = phase.run_phase

    def alternating(*of_phase: Any, fit: Any, **settings: Any) -> None:
        def over_alternating(run: TrainRun, **others: Any) -> TrainState:
            found.append(Alternating(run.train, pairs))
            steps = COUNTED + (pairs + 1) * 3 * BLOCK + 1
            every = {"validate_every": steps + 1, "save_every": steps + 1, "log_every": BLOCK}
            return fit(replace(run, train=found[0]), steps=steps, **every, **others)

        train(*of_phase, fit=over_alternating, **settings)

    with (
        mock.patch.object(phase, "run_phase", alternating),
        mock.patch.object(step_operations, "SEQUENCES", 0),  # however few are in a step, over no more steps
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        config.stage_function("warmup")()
    return found[0]
