"""The microbatches of a training run, read ahead by threads.

The rows of a step are a pure function of its number, those of a microbatch are fixed by the settings, and a process takes its
share of a step's microbatches: neither threads nor processes change what is learned from, and any step can be the first.

Plain threads: those of ``torchdata.nodes`` (0.11) call ``torch.set_num_threads(1)``, which holds for the whole process and makes a
step of the model on a CPU twice as long.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.training.order import DeterministicSampler
from pipeline.data.batches import Source
from pipeline.errors import ConfigError, DataError
from pipeline.machine.distributed import rank, world

THREADS = "SLOTLOOP_READERS"  # threads that read ahead of the model; 0 = none. Changes no result and so no setting
AHEAD = 2  # microbatches that wait for each thread

Rows = tuple[Tensor, Tensor]  # rows, and the epoch of each


@dataclass(frozen=True)
class TrainLoader:
    """Endless training microbatches.

    Attributes:
        source: of the rows.
        batch_size: sequences of a microbatch.
        seed: of the order.
        pin: put batches into page-locked memory, for a GPU.
    """

    source: Source
    batch_size: int
    seed: int
    pin: bool = False

    def steps(self, first: int, accumulation: int) -> Iterator[list[Batch]]:
        """This process's microbatches of each optimizer step from ``first`` on.

        Args:
            first: number of a step, from 0.
            accumulation: microbatches of a step, of all processes together.

        Raises:
            ConfigError: the microbatches of a step cannot be shared equally among the processes, or rows are too few for a step.
        """
        if accumulation % world():
            raise ConfigError(
                f"{world()} processes cannot share {accumulation} microbatches a step equally; set loop.fit.accumulation to a "
                f"multiple of {world()} and batch_size to a part as large (then the sequences of a step stay the same)"
            )
        share = accumulation // world()
        order = self._order(accumulation)
        return _grouped(_read(self._microbatches(order, first, share), self._batch), share)

    def sequences(self, accumulation: int) -> int:
        """Of an optimizer step, over all processes."""
        return self.batch_size * accumulation

    def state(self, step: int, accumulation: int) -> dict[str, Any]:
        """Where training stands after ``step`` steps; the same in every process."""
        size = self.sequences(accumulation)
        return {"step": step, "size": size, "seed": self.seed, "rows": len(self.source.padded), "data": self.source.fingerprint}

    def check(self, state: dict[str, Any], accumulation: int) -> None:
        """Raise DataError unless ``state`` is of this order over this data."""
        now = self.state(state["step"], accumulation)
        if wrong := [f"{key} {state[key]} instead of {now[key]}" for key in now if state.get(key) != now[key]]:
            raise DataError(f"the snapshot belongs to another order of examples: {', '.join(wrong)}; remove .scratch to start anew")

    def _order(self, accumulation: int) -> DeterministicSampler:
        source = self.source
        try:
            return DeterministicSampler(source.padded, self.sequences(accumulation), self.seed, source.blocks, source.near)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _microbatches(self, order: DeterministicSampler, step: int, share: int) -> Iterator[Rows]:
        first = rank() * share
        while True:
            rows, epochs = order.step(step)
            for part in range(first, first + share):
                chosen = slice(part * self.batch_size, (part + 1) * self.batch_size)
                yield rows[chosen], epochs[chosen]
            step += 1

    def _batch(self, chosen: Rows) -> Batch:
        batch = self.source.batch(*chosen)
        return batch.pinned() if self.pin else batch


def in_order(source: Source, batch_size: int) -> Iterator[tuple[int, Batch]]:
    """Every row once, shortest first, with a last, smaller batch; this process's share of the batches, with their numbers."""
    rows = source.padded.argsort(stable=True).split(batch_size)
    numbers = range(rank(), len(rows), world())
    chosen = ((rows[number], torch.zeros_like(rows[number])) for number in numbers)
    return zip(numbers, _read(chosen, lambda pair: source.batch(*pair)), strict=True)


def _read(chosen: Iterator[Rows], batch: Callable[[Rows], Batch]) -> Iterator[Batch]:
    """Batches of the chosen rows in order, read ahead by threads."""
    text = os.environ.get(THREADS, "1")
    if not re.fullmatch(r"\d{1,2}", text):
        raise ConfigError(f"{THREADS} is '{text}'; expected how many threads read ahead, 0 to 99")
    threads = int(text)
    if threads == 0:
        yield from map(batch, chosen)
        return

    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(batch, rows) for rows in islice(chosen, AHEAD * threads))
        try:
            while ahead:
                found = ahead.popleft().result()
                ahead.extend(pool.submit(batch, rows) for rows in islice(chosen, 1))
                yield found
        finally:
            for waiting in ahead:
                waiting.cancel()


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := [next(batches) for _ in range(size)]:
        yield group
