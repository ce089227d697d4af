"""This process among others: it ends when what started it ends, and at SIGTERM when it has saved its work."""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from pipeline.errors import UserError

_PR_SET_PDEATHSIG = 1
INTERRUPTED = 143  # status of a process that SIGTERM ended
LOST = 75  # status of a process that ended because another one of its job did
_came: list[float] = []  # when signals came to the block of ``termination_noted`` that is entered


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies: DVC killed leaves no training behind. Nothing elsewhere."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def leave(status: int) -> NoReturn:
    """End this process for good. Of several, one that failed does so at once: threads of a broken group would abort its end."""
    if status and "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    gc.freeze()  # else the interpreter searches all of torch for garbage, several times, before it lets go of everything
    sys.exit(status)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without the garbage collector: modules stay, and to search a growing heap is a tenth of the time that torch takes."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Interrupted(UserError):
    """SIGTERM or SIGUSR1 came; what was done so far is saved."""


class Lost(UserError):
    """Another process of the job has ended or does not answer."""


@contextlib.contextmanager
def termination_noted() -> Iterator[Callable[[], str]]:
    """Within the block SIGTERM, and SIGUSR1 by which schedulers warn, do not end the process: what is given names the first that
    came, "" if none has.

    A process that dies can send it once for each of its threads: one handler interrupts another, so neither may take a lock.
    """
    came = ""

    def note(number: int, _: object) -> None:
        nonlocal came
        came = came or signal.Signals(number).name
        _came.append(time.monotonic())

    if threading.current_thread() is not threading.main_thread():
        yield lambda: came
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _came.clear()


def terminated_at() -> float | None:
    """Tell when a signal came to the block of ``termination_noted`` that is entered, by the monotonic clock; None = it has not."""
    return next(iter(_came), None)
