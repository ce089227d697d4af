"""Memory and time of deep supervision: `python -m bench.deep_supervision [--quick] [--json PATH] [--threads 1]`.

One training step (forward and backward of every supervised step, B 4, L 256, d 256, float32) in our ways to keep memory, beside
naive deep supervision (every graph and all logits are kept) and beside none (``plain``: the loss of the last step alone). All
train the very same model. Memory is the allocator's exact peak over what was there before, from a pass of its own; time is of
interleaved rounds, processor time on CPU, and ratios are medians of those within a round (``..._best``: the smallest).
On CPU a great part of naive training can be the system's, which hands out fresh pages for gigabytes of logits; how great differs
from machine to machine. ``user_time_vs_...`` leaves it out: arithmetic beside arithmetic, the cautious number.

``flops_vs_floor`` is reckoned, against the least that exact deep supervision needs (3 forward passes of the core, 2 products with
the frozen head); ``memory_vs_floor`` is against carries, the graph of one step, one chunk of logits and the gradients.
"""

import json as js
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fire
import torch

from bench.subject import Subject, batch_of, carry_bytes, graph_bytes, naive, plain, recursive, step_flops
from components.batch import Batch
from components.model import Model
from components.objective.activations import checkpoint, keep
from components.objective.linear_cross_entropy import CHUNK_ROWS
from components.objective.losses import masked_cross_entropy
from components.objective.objective import Objective
from components.objective.supervision import constant
from components.recursion import full_gradient, one_step_gradient
from pipeline.machine import allocation
from pipeline.reporting.markdown import markdown

SEQUENCES, LENGTH, DIM = 4, 256, 256
STEPS, VOCABULARIES, SHARES = (1, 2, 4, 8, 16), (1000, 32000, 126464), (1.0, 0.2)
GROWTH, QUICK_GROWTH = (4, 16), (2, 4)  # steps between which memory per step is measured
CHUNKS = {126464: 128}  # rows whose logits exist at once, where the default would be most of the memory
OURS = {"keep": (keep, full_gradient), "checkpoint": (checkpoint, full_gradient), "detach": (keep, one_step_gradient)}
MB = 1e6

Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Case:
    """One size: what all modes train."""

    model: Subject
    batch: Batch
    steps: int
    vocab: int
    share: float
    chunk: int

    def modes(self, limit: float) -> dict[str, Callable[[], None]]:
        """What a round consists of; naive methods that would need more than ``limit`` bytes are left out."""
        found: dict[str, Callable[[], None]] = {}
        for name, method, kept in (("naive", naive, self.steps), ("plain", plain, 1)):
            size = self.steps * graph_bytes(self.model, self.batch) + 2 * (kept + 1) * self.rows * self.vocab * 4
            if size <= limit:
                found[name] = partial(method, self.model, self.batch, self.steps)
            else:
                print(f"{self.title}: {name} is left out, it would need {size / 1e9:.1f} GB (--limit_gb)", flush=True)
        return {**found, **{name: partial(ours, name, self.model, self.batch, self.steps, self.chunk) for name in OURS}}

    @property
    def rows(self) -> int:
        """Supervised positions."""
        return len(self.batch.supervised)

    @property
    def title(self) -> str:
        """Its size in words."""
        return f"{self.steps} steps, vocabulary {self.vocab}, {self.share:.0%} supervised"

    def flops(self, mode: str) -> float:
        """Of one training step."""
        core, head = step_flops(self.model.refiner, *self.batch.tokens.shape), 4 * DIM * self.vocab * self.rows
        return self.steps * core * (4 if mode == "checkpoint" else 3) + head * (1 if mode == "plain" else self.steps)

    def floor(self) -> int:
        """Bytes that exact deep supervision needs when it keeps nothing but carries."""
        gradients = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        chunk = min(self.chunk, self.rows) * self.vocab * 4
        return self.steps * carry_bytes(self.model, self.batch) + graph_bytes(self.model, self.batch) + chunk + gradients


def ours(mode: str, model: Model, batch: Batch, steps: int, chunk: int = CHUNK_ROWS) -> None:
    """Run one training step through ``components.objective.objective``, every step of weight 1."""
    activations, bptt = OURS[mode]
    loss, evenly = partial(masked_cross_entropy, chunk=chunk), partial(constant, weight=1.0)
    Objective(steps, loss, evenly, bptt=bptt, activations=activations).gradient(model, batch, sequences=len(batch))


def main(
    rounds: int = 3,
    quick: bool = False,
    threads: int = 1,
    patience: float = 30.0,
    limit_gb: float = 12.0,
    chunk: int | None = None,
    vocab: int | None = None,
    steps: int | None = None,
    json: str = "",
) -> None:
    """Print tables.

    Args:
        rounds, patience: of timing each case; after ``patience`` seconds no further round begins.
        quick: 8 steps at 32k with a fifth of the positions supervised, one round.
        threads: of the processor.
        limit_gb: naive methods that would need more are left out.
        chunk: rows whose logits exist at once; None = ``CHUNKS``, else the default.
        vocab, steps: these only.
        json: file for the rows.
    """
    torch.set_num_threads(threads)
    rows: list[Row] = []
    growing: list[Row] = []
    for size in (vocab,) if vocab else VOCABULARIES[1:2] if quick else VOCABULARIES:
        model = recursive(DIM, vocab=size).to(device())
        for share in SHARES[1:] if quick else SHARES:
            batch = batch_of(SEQUENCES, LENGTH, DIM, size, share).to(device())
            at_once = CHUNKS.get(size, CHUNK_ROWS) if chunk is None else chunk
            numbers = (steps,) if steps else STEPS[3:4] if quick else STEPS
            cases = [Case(model, batch, number, size, share, at_once) for number in numbers]
            for case in cases:
                rows += measured(case, 1 if quick else rounds, patience, limit_gb * 1e9)
                print(f"{case.title}: done", flush=True)
            modes = ("checkpoint",) if quick else ("checkpoint", "keep")  # growth is the same for any share, and none for detach
            growing += [growth(cases[-1], mode, *(QUICK_GROWTH if quick or steps else GROWTH)) for mode in modes if share < 1]
            if json:
                Path(json).write_text(js.dumps([*rows, *growing], indent=1) + "\n")
    for table in (rows, growing):
        print(markdown([list(table[0]), *([shown(value) for value in row.values()] for row in table)]))


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measured(case: Case, rounds: int, patience: float, limit: float) -> list[Row]:
    """A row for every mode of one case."""
    modes = case.modes(limit)
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # of memory the number of threads changes nothing
    memory = {name: peak(case.model, run) for name, run in modes.items()}  # and the warm-up of every mode
    torch.set_num_threads(threads)
    time.sleep(0.5)  # idle threads wait busily for a while
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in modes}
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - began > patience:
            break
        for name, run in modes.items():
            taken[name].append(seconds(case.model, run))
    carry = carry_bytes(case.model, case.batch)
    rows: list[Row] = []
    for name, times in taken.items():
        row: Row = {
            "mode": name, "steps": case.steps, "vocab": case.vocab, "supervised": case.share, "chunk": case.chunk,
            "memory_mb": memory[name] / MB, "carry_mb": carry / MB, "seconds": statistics.median(total for total, _ in times),
            "rounds": len(times),
        }  # fmt: skip
        for other in ("naive", "plain"):
            pairs = list(zip(times, taken.get(other, []), strict=other in taken))
            ratios = [its[0] / theirs[0] for its, theirs in pairs]
            row[f"memory_vs_{other}"] = memory[name] / memory[other] if ratios else None
            row[f"time_vs_{other}"] = statistics.median(ratios) if ratios else None
            row[f"time_vs_{other}_best"] = min(ratios) if ratios else None
            row[f"user_time_vs_{other}"] = statistics.median(its[1] / theirs[1] for its, theirs in pairs) if pairs else None
        rows.append({
            **row,
            "flops_vs_floor": case.flops(name) / case.flops("keep"), "memory_vs_floor": memory[name] / case.floor(),
        })  # fmt: skip
    return rows


def peak(model: Model, run: Callable[[], None]) -> int:
    """Most bytes that were allocated at once while it ran, beyond those that were there before."""
    model.zero_grad(set_to_none=True)
    return allocation.peak(run)


def seconds(model: Model, run: Callable[[], None]) -> tuple[float, float]:
    """Processor time of one training step, and the part of it that is not the system's; wall time twice where a GPU works."""
    model.zero_grad(set_to_none=True)
    if not torch.cuda.is_available():
        before = resource.getrusage(resource.RUSAGE_SELF)
        run()
        after = resource.getrusage(resource.RUSAGE_SELF)
        user = after.ru_utime - before.ru_utime
        return user + after.ru_stime - before.ru_stime, user
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began,) * 2


def growth(case: Case, mode: str, few: int, many: int) -> Row:
    """Bytes that a further step costs, over the bytes of its carry, from ``few`` steps to ``many``."""
    first, last = (peak(case.model, partial(ours, mode, case.model, case.batch, n, case.chunk)) for n in (few, many))
    return {
        "mode": mode, "vocab": case.vocab, "supervised": case.share, "steps_from": few, "steps_to": many,
        "memory_per_step_vs_carry": (last - first) / (many - few) / carry_bytes(case.model, case.batch),
    }  # fmt: skip


def shown(value: str | float | None) -> str:
    """A cell of the table."""
    return "-" if value is None else str(value) if isinstance(value, str | int) else f"{value:.3g}"


if __name__ == "__main__":
    fire.Fire(main)
