"""The processes of one job. The only door to ``torch.distributed``; alone, every function is what one process needs.

How many there are comes from the environment (``torchrun``, or SLOTLOOP_PROCESSES before any stage) and is no setting: every number
that a run writes is the same for one process and for several, to the last bit where they share microbatches in powers of two.
Every process holds the whole trained part, weights, moments, average and gradient, unless ``pipeline.training.sharding`` shares it
out; microbatches are shared out always. Gradients are summed once, after the last recursion step's backward.
"""

import contextlib
import datetime
import os
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from components.training.summation import pairwise
from pipeline.errors import ConfigError
from pipeline.machine import agreement
from pipeline.machine.meetings import Meetings
from pipeline.machine.out_of_memory import out_of_memory
from pipeline.machine.process import Interrupted, Lost

T = TypeVar("T")
TRANSPORT = "/gloo/"  # in the errors of what carries messages between CPUs, which have no type of their own
BUCKET = 25 * 2**20 // 4  # numbers in float32 that are summed at once: enough that a message's latency is nothing
TIMEOUT = "SLOTLOOP_TIMEOUT"  # seconds that a process waits for the others, loading and validation included; 1800 if not set


def rank() -> int:
    """Return this process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine: its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


_store: Any = None  # where this process has met the others of its job
_work: agreement.Work | None = None  # of the job, once they have agreed
_owner = 0  # the process that has the store
_meetings: Meetings | None = None  # of the job that this process has joined


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What fails within the block because another process is not there is ``Lost``; also a decorator."""
    try:
        with _meetings.waiting() if _meetings else contextlib.nullcontext():
            yield
    except RuntimeError as error:  # what the libraries below raise for it
        if out_of_memory(error):
            raise
        raise _lost(error, _meetings.absent() if _meetings else []) from None


def _lost(error: RuntimeError, absent: Sequence[int]) -> Lost:
    who = f"process {', '.join(map(str, absent))} of {world()}" if absent else "the other processes"
    reason = str(error).partition("] ")[2] or str(error)
    return Lost(f"lost {who} ({reason.partition('. ')[0]}); run it again to continue")


@contextlib.contextmanager
def as_one() -> Iterator[None]:
    """Work in which a library lets the processes talk to one another: what fails because another is not there is ``Lost``."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or TRANSPORT in str(error):
            with _together():  # as if it had lost them at a meeting
                raise
        raise


def agree(command: Sequence[str]) -> agreement.Work:
    """Meet the job's other processes and agree, once, on what all run.

    Those that were given a command are counted first, whatever numbers they were started with: the first process writes and prints.

    Args:
        command: arguments of ``python -m stages``; none = those of the others.

    Raises:
        ConfigError: there are two commands, or none.
        Lost: another process is not there.
    """
    global _work, _owner
    if _work is None:
        with _together():
            store = dist.PrefixStore("work", _met(_timeout()))  # type: ignore[attr-defined]  # documented, but not exported
            first, _work = agreement.agreed(store, rank(), world(), command)
        os.environ["RANK"], _owner = str((rank() - first) % world()), -first % world()
    return _work


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Work together with the job's other processes within the block; all but the first print nothing but errors."""
    if world() == 1:
        yield
        return
    with _together():
        _join(_timeout())
    with contextlib.ExitStack() as stack:
        if rank():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        except Interrupted:  # it came to all: none ends, and has the others stopped, before the first has written what it did
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a later one, to those that heard it from another, says nothing new
            barrier()
            raise
        barrier()
    _part()


def _timeout() -> datetime.timedelta:
    text = os.environ.get(TIMEOUT, "1800")
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise ConfigError(f"{TIMEOUT} is '{text}'; expected how many seconds a process waits for the others, 1 to 999999")
    return datetime.timedelta(seconds=int(text))


def _met(timeout: datetime.timedelta) -> Any:
    """Meet the other processes where the environment says, once; returns the store that all share."""
    global _store
    if _store is None:
        _store, *_ = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]  # documented, but not exported
        _store.set_timeout(timeout)
    return _store


def _join(timeout: datetime.timedelta) -> None:
    """Work together with the processes that have met."""
    global _meetings
    store = _met(timeout)
    counts, group = (dist.PrefixStore(name, store) for name in ("meetings", "group"))  # type: ignore[attr-defined]  # likewise
    meetings = Meetings(counts, rank(), world(), _owner)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timeout, store=group, rank=rank(), world_size=world())
    _meetings = meetings


def _part() -> None:
    """Leave the other processes, all of which have done their work."""
    global _meetings, _store, _work, _owner
    if _meetings:
        _meetings.end()
    _meetings = _store = _work = None
    _owner = 0
    dist.destroy_process_group()


@_together()
def barrier() -> None:
    """Wait until every process has come here."""
    if world() > 1:
        dist.barrier()


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the block before all others do."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


@_together()
def any_of(flag: object) -> bool:
    """Find out whether any process says so: with what is true, or a text that is not empty."""
    if world() == 1:
        return bool(flag)
    largest = torch.tensor(float(bool(flag)))
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return bool(largest)


@_together()
def gathered(value: T) -> list[T]:
    """Gather every process's value, in their order."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


@_together()
def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum of every process's tensors, by the tree of ``components.training.summation`` over the processes; the same bits in each.

    Each process sums one part of the numbers and sends it to the others: the traffic of a ring, in a fixed order. That goes bucket
    by bucket, through tensors and across them: a number's sum does not depend on those beside it, and what is taken beside the
    given tensors is a few buckets, however large they are.

    Args:
        tensors: of the same shapes in every process; they are overwritten.
    """
    if world() == 1:
        return list(tensors)
    whole = [tensor.detach().contiguous() for tensor in tensors]
    if not any(map(len, flat := [tensor.view(-1) for tensor in whole])):
        return whole
    exchange = _Exchange(min(BUCKET, sum(map(len, flat))), flat[0].device)
    for bucket in _buckets(flat, BUCKET):
        for part, total in zip(bucket, exchange(bucket), strict=True):
            part.copy_(total)
    return whole


class _Exchange:
    """Sums of one bucket after another, in the same memory: the library lets a finished exchange's tensors go only later."""

    def __init__(self, numbers: int, device: torch.device) -> None:
        share = -(-numbers // world())  # padded, so that each process sums as many
        self.mine, self.theirs, self.sums = (torch.zeros(world() * share, device=device) for _ in range(3))
        self.total = torch.zeros(share, device=device)

    def __call__(self, bucket: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sum of every process's bucket, cut as the bucket is; the next call overwrites it."""
        sizes = [len(part) for part in bucket]
        share = -(-sum(sizes) // world())
        mine, theirs, sums = (every[: world() * share].view(world(), share) for every in (self.mine, self.theirs, self.sums))
        torch.cat([part.float() for part in bucket], out=self.mine[: sum(sizes)])
        dist.all_to_all_single(theirs, mine)
        dist.all_gather(list(sums.unbind()), self.total[:share].copy_(pairwise(theirs)))
        return self.sums[: sum(sizes)].split(sizes)


def _buckets(flat: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Cut numbers into buckets of ``size``, the last of fewer: parts of tensors that lie side by side."""
    bucket, room = list[Tensor](), size
    for tensor in flat:
        rest = tensor
        while len(rest):
            bucket.append(rest[:room])
            rest, room = rest[room:], room - len(bucket[-1])
            if not room:
                yield bucket
                bucket, room = [], size
    if bucket:
        yield bucket
