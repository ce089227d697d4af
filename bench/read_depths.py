"""What it costs to read every depth off one pass: `python -m bench.read_depths [--quick] [--json PATH] [--threads 1]`.

A refiner of random weights on states as wide and long as those of 9x9 puzzles, taken to the deepest number of steps by evaluate's
own function: once read off at every number of ``DEPTHS``, and once after the last step alone. Processor time of interleaved rounds,
the ratio is the median of those within a round. After the last step both must read the same numbers, or nothing is printed.
"""

import json as js
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import torch

from bench.subject import Subject, batch_of
from components.batch import Batch
from components.refiners.delta import Damped
from components.refiners.refiner import SlotRefiner
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.depths import at_depths
from pipeline.machine.runtime import Runtime
from pipeline.reporting.markdown import markdown

LENGTH, DIM, HEADS, VOCAB, MASKED, TRAINED = 81, 64, 4, 11, 0.45, 6
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 256)


def main(rounds: int = 5, quick: bool = False, threads: int = 1, json: str = "") -> None:
    """Print a table; --quick: three rounds to 64 steps on fewer sequences."""
    torch.set_num_threads(threads)
    sequences, depths = (50, DEPTHS[:-1]) if quick else (200, DEPTHS)
    model = Subject(SlotRefiner(DIM, steps=TRAINED, heads=HEADS, update=Damped()), VOCAB).eval()
    batch = batch_of(sequences, LENGTH, DIM, VOCAB, MASKED)
    taken: dict[str, list[float]] = {"all": [], "deepest": []}
    for _ in range(3 if quick else rounds):
        every, its = timed(model, batch, depths)
        last, alone = timed(model, batch, depths[-1:])
        assert every[-1] == last[-1]
        taken["all"].append(its)
        taken["deepest"].append(alone)
    ratio = statistics.median(its / alone for its, alone in zip(taken["all"], taken["deepest"], strict=True))
    row = {
        "read": f"{len(depths)} depths", "to": depths[-1], **{f"{name} s": statistics.median(of) for name, of in taken.items()},
        "time_vs_deepest_alone": ratio,
    }  # fmt: skip
    print(f"{sequences} sequences of {LENGTH}, width {DIM}\n")
    print(markdown([list(row), [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]]))
    if json:
        Path(json).write_text(js.dumps([row], indent=1) + "\n")


@torch.no_grad()
def timed(model: Subject, batch: Batch, depths: Sequence[int]) -> tuple[list[dict[str, Any]], float]:
    """What is read off, and the processor time that it takes. The trained number is always read."""
    models, began = Compared({"refiner": model}, Runtime(threads=torch.get_num_threads())), time.process_time()
    rows = at_depths(models, [batch], depths, torch.arange(len(batch)))
    return rows["refiner"], time.process_time() - began


if __name__ == "__main__":
    fire.Fire(main)
