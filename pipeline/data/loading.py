"""The microbatches of a training run, read ahead by threads: a graph of ``torchdata.nodes``. The door to torchdata.

The rows of a step are a pure function of its number, those of a microbatch are fixed by the settings, and a process takes its
share of a step's microbatches: neither threads nor processes change what is learned from, and any step can be the first.

Notable: workers of torchdata 0.11 call ``torch.set_num_threads(1)``, which holds for every thread that has not computed yet, the
main one included. ``_Work`` sets the number back in each thread before it makes its first batch.
"""

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torchdata.nodes import BaseNode, IterableWrapper, Mapper, ParallelMapper, PinMemory, Prefetcher

from components.batch import Batch
from components.training.order import DeterministicSampler
from pipeline.data.batches import Chosen, Deferred, Source
from pipeline.data.giving_up import abandoned
from pipeline.errors import ConfigError, DataError
from pipeline.machine.distributed import rank, world
from pipeline.progress import watched

THREADS = "SLOTLOOP_READERS"  # threads that read ahead of the model; 0 = none. Changes no result and so no setting
AHEAD = 2  # microbatches that wait for each thread


@dataclass(frozen=True)
class TrainLoader:
    """Loader of training microbatches, without end.

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
        node = self.node(first, accumulation)
        return _grouped(_read(node, self.pin), node.share)

    def node(self, first: int, accumulation: int) -> "Microbatches":
        """The root of the graph that ``steps`` runs; its state is the number of the next step and microbatch."""
        if accumulation % world():
            raise ConfigError(
                f"{world()} processes cannot share {accumulation} microbatches a step equally; set loop.fit.accumulation to a "
                f"multiple of {world()} and batch_size to a part as large (then the sequences of a step stay the same)"
            )
        try:
            sampler = self.source.sampler(self.sequences(accumulation), self.seed)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return Microbatches(self.source, sampler, self.batch_size, accumulation // world(), first)

    def sequences(self, accumulation: int) -> int:
        """Count the sequences of an optimizer step, over all processes."""
        return self.batch_size * accumulation

    def state_dict(self, step: int, accumulation: int) -> dict[str, Any]:
        """Where training stands after ``step`` steps, however far threads have read ahead; the same in every process."""
        size = self.sequences(accumulation)
        return {"step": step, "size": size, "seed": self.seed, "rows": len(self.source.padded), "data": self.source.fingerprint}

    def load_state_dict(self, state: dict[str, Any], accumulation: int) -> int:
        """The step that ``steps`` goes on with from such a state.

        Raises:
            DataError: the state is of another order, or over other data.
        """
        now = self.state_dict(state["step"], accumulation)
        if wrong := [f"{key} {state[key]} instead of {now[key]}" for key in now if state.get(key) != now[key]]:
            raise DataError(f"the snapshot belongs to another order of examples: {', '.join(wrong)}; remove .scratch to start anew")
        return int(now["step"])


class Microbatches(BaseNode[Deferred]):
    """This process's microbatches from a step on, each as the function that makes it. State: the step and the microbatch that come
    next.

    Args:
        source: of the rows.
        sampler: says which rows make up a step.
        batch_size: sequences of a microbatch.
        share: microbatches of a step that are this process's.
        first: number of a step.
    """

    def __init__(self, source: Source, sampler: DeterministicSampler, batch_size: int, share: int, first: int) -> None:
        super().__init__()
        self.source, self.sampler, self.batch_size, self.share, self.first = source, sampler, batch_size, share, first

    def reset(self, initial_state: dict[str, int] | None = None) -> None:
        super().reset(initial_state)
        state = {"step": self.first, "microbatch": 0} if initial_state is None else initial_state
        self._count = state["step"] * self.share + state["microbatch"]
        self._deferred = _errors_deferred(self.source.deferred(self._chosen(self._count), self.sampler))

    def next(self) -> Deferred:
        made = next(self._deferred)
        self._count += 1
        return made

    def get_state(self) -> dict[str, int]:
        return dict(zip(("step", "microbatch"), divmod(self._count, self.share), strict=True))

    def _chosen(self, count: int) -> Iterator[Chosen]:
        step, part = divmod(count, self.share)
        first = rank() * self.share
        while True:
            rows, epochs = self.sampler.step(step)
            for number in range(first + part, first + self.share):
                mine = slice(number * self.batch_size, (number + 1) * self.batch_size)
                yield rows[mine], epochs[mine]
            step, part = step + 1, 0


def in_order(source: Source, batch_size: int) -> Iterator[tuple[int, Batch]]:
    """Every row once, shortest first, with a last, smaller batch; this process's share of the batches, with their numbers."""
    rows = source.padded.argsort(stable=True).split(batch_size)
    numbers = range(rank(), len(rows), world())
    chosen = ((rows[number], torch.zeros_like(rows[number])) for number in numbers)
    batches = zip(numbers, _read(IterableWrapper(_errors_deferred(source.deferred(chosen)))), strict=True)
    return watched(batches, "validation", len(numbers), "batch")


class _Work:
    """Makes batches in any thread, until it is ended. An error is a result, and so arrives with its own type and words."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()  # to ask is what makes the main thread keep its number
        self._running, self._change, self._ended = set[int](), threading.Condition(), False

    def __call__(self, make: Deferred) -> Batch | Exception | None:
        me = threading.get_ident()
        with self._change:
            if self._ended:
                return None
            self._running.add(me)
        try:
            if torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            return make()
        except Exception as error:
            return error
        finally:
            with self._change:
                self._running.discard(me)
                self._change.notify_all()

    def end(self) -> None:
        """Make no more batches, and wait for those that are being made: a thread within torch must not outlive the interpreter."""
        me = {threading.get_ident()}  # whose thread may also be the one that collects an abandoned loader
        with self._change:
            self._ended = True
            with abandoned(self._running - me):
                self._change.wait_for(lambda: self._running <= me)


def _read(source: BaseNode[Deferred], pin: bool = False) -> Iterator[Batch]:
    """The batches in order, made ahead by threads."""
    text = os.environ.get(THREADS, "1")
    if not re.fullmatch(r"\d{1,2}", text):
        raise ConfigError(f"{THREADS} is '{text}'; expected how many threads read ahead, 0 to 99")
    count, work = int(text), _Work()
    if count > 1:
        node = ParallelMapper(source, work, num_workers=count)  # as many batches ahead as Prefetcher's
    else:
        node = Mapper(source, work)
        node = Prefetcher(node, AHEAD) if count else node  # one thread needs no queue on its way in, nor one to sort
    node = PinMemory(node) if pin and count else node
    try:
        for made in node:
            if isinstance(made, Exception):
                raise made
            if pin:
                torch.set_num_threads(work.threads)  # the thread that pins makes no batch, and has set one as well
            yield made
    finally:
        work.end()
        del node  # its threads end with it, even while an error's traceback holds this frame


def _errors_deferred(deferred: Iterator[Deferred]) -> Iterator[Deferred]:
    """The same, and an error as one that is raised where its batch was due."""
    try:
        yield from deferred
    except Exception as error:
        yield partial(_raise, error)


def _raise(error: Exception) -> Batch:
    raise error


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := [next(batches) for _ in range(size)]:
        yield group
