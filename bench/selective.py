"""What refining only doubtful chunks saves: `python -m bench.selective [--quick] [--json PATH] [--threads 1]`.

One refiner of slots, once over all chunks and once over the doubtful ones alone, forward as in evaluation and forward with backward
as in training; everything around it (trunk, head) is left out. ``equal`` = as many doubtful chunks in every sequence; ``random`` =
each chunk by the toss of a coin, where the sequence with the most sets how many tokens the others are padded to. Processor time of
interleaved rounds, ratios are medians of those within a round.
"""

import json as js
import statistics
import time
from functools import partial
from pathlib import Path

import fire
import torch

from components.refiners.core import Core
from components.refiners.hybrid import Hybrid
from components.refiners.refiner import SlotRefiner
from pipeline.reporting.markdown import markdown

SEQUENCES, LENGTH, DIM, STEPS, CHUNK = 8, 512, 256, 4, 16
SHARES = (1.0, 0.5, 0.25)

Row = dict[str, str | float]


def main(rounds: int = 7, quick: bool = False, threads: int = 1, json: str = "") -> None:
    """Print a table; --quick: three rounds at a smaller size."""
    torch.set_num_threads(threads)
    sequences, length, dim = (4, 256, 64) if quick else (SEQUENCES, LENGTH, DIM)
    core = Hybrid(dim, partial(SlotRefiner, steps=STEPS), chunk=CHUNK)
    generator = torch.Generator().manual_seed(0)
    core.init_weights(1.0, generator)
    x = torch.randn(sequences, length, dim, generator=generator)
    rows: list[Row] = []
    for training in (False, True):
        confidences = {
            (share, spread): confidence(sequences, length // CHUNK, share, spread, generator)
            for share in SHARES
            for spread in (("equal", "random") if share < 1 else ("equal",))
        }
        for doubtful in confidences.values():
            seconds(core, x, doubtful, training)  # warms up
        taken: dict[tuple[float, str], list[float]] = {case: [] for case in confidences}
        for _ in range(3 if quick else rounds):
            for case, times in taken.items():
                times.append(seconds(core, x, confidences[case], training))
        for (share, spread), times in taken.items():
            ratio = statistics.median(its / every for its, every in zip(times, taken[1.0, "equal"], strict=True))
            rows.append({
                "pass": "training" if training else "evaluation", "refined": share, "spread": spread,
                "milliseconds": 1e3 * statistics.median(times), "time_vs_all": ratio, "saved": 1 - ratio,
            })  # fmt: skip
    print(f"{sequences} sequences of {length}, width {dim}, chunks of {CHUNK}, {STEPS} steps\n")
    print(markdown([list(rows[0]), *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]))
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")


def confidence(sequences: int, chunks: int, share: float, spread: str, generator: torch.Generator) -> torch.Tensor:
    """0 in a share of the chunks, 1 in the others."""
    draw = torch.rand(sequences, chunks, generator=generator)
    doubtful = draw < share if spread == "random" else draw.argsort(1).argsort(1) < round(share * chunks)
    return (~doubtful).float().repeat_interleave(CHUNK, 1)


def seconds(core: Core, x: torch.Tensor, confidence: torch.Tensor, training: bool) -> float:
    """Processor time of all steps, and of their backward pass in training."""
    core.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(training):
        began = time.process_time()
        states = [state.hidden for state in core.refine(x, x, confidence=confidence)]
        if training:
            torch.stack([state.square().mean() for state in states]).sum().backward()
        return time.process_time() - began


if __name__ == "__main__":
    fire.Fire(main)
