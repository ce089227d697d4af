"""Progress of long work: rate and time left, as a bar on a terminal and as lines elsewhere. The only door to ``tqdm``.

Lines come when the work has something to say (``Progress.line``) and by time: ``FIRST`` seconds after the last one, then ``EVERY``.
A thread watches the clock, so that a unit of work that takes minutes shows life too. Of work within work the innermost is told.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import TracebackType
from typing import ClassVar, ParamSpec, TextIO, TypeVar

from tqdm import tqdm

FIRST = 20.0  # seconds without a line until the first by time
EVERY = 60.0  # and until each later one
PULSE = 1.0  # seconds between looks at the clock
clock = time.monotonic
T = TypeVar("T")
P = ParamSpec("P")


class Progress:
    """How far work is, in a block: a bar of ``total`` units; ``line`` prints above it.

    Args:
        label: of the work, before every line.
        total: units; 0 = nobody knows.
        unit: of what is counted, in the singular; "" = nothing is, lines tell how long it takes.
        done: units that were done before.
        measured: tells how many units are done, for work that cannot; a tick asks it.
        stream: of lines by time, of this work and of what is within it; None = where the work around it says, else standard error.

    >>> with Progress("extract", 2, "row") as bar:  # doctest: +SKIP
    ...     bar.advance(1)
    """

    _open: ClassVar[list["Progress"]] = []  # innermost last
    _spoken: ClassVar[float] = 0.0  # when the last line was printed
    _lock: ClassVar[threading.RLock] = threading.RLock()
    _watch: ClassVar["_Watch | None"] = None

    def __init__(
        self, label: str, total: int = 0, unit: str = "", done: int = 0, *,
        measured: Callable[[], int] | None = None, stream: TextIO | None = None,
    ) -> None:  # fmt: skip
        self.label, self.total, self.unit = label, total, unit
        self.done = self._first = done if measured is None else measured()
        self._started = clock()
        self._measured, self._stream, self._told = measured, stream, False
        self._speaks = os.environ.get("RANK", "0") == "0"
        hidden = not (unit and self._speaks and sys.stderr.isatty())
        self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, dynamic_ncols=True, disable=hidden, leave=False)

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more units as done."""
        self.done += n
        self.bar.update(n)
        tick()

    def counting(self, function: Callable[P, T]) -> Callable[P, T]:
        """Wrap a function so that each of its calls counts as a unit."""

        @wraps(function)
        def counted(*args: P.args, **named: P.kwargs) -> T:
            result = function(*args, **named)
            self.advance()
            return result

        return counted

    def speed(self) -> float:
        """Compute the units a second, since it began."""
        return (self.done - self._first) / max(1e-9, clock() - self._started)

    def rate(self) -> str:
        """Write the units a second and the seconds left; before the first unit, the seconds so far."""
        if not (rate := self.speed()):
            return f"{clock() - self._started:.0f} s so far"
        each = (
            f"{rate:.1f} {self.unit if self.unit.isupper() else f'{self.unit}s'}/s"
            if rate >= 1
            else f"{1 / rate:.1f} s a {self.unit}"
        )
        return f"{each}, " + (f"{(self.total - self.done) / rate:.0f} s left" if self.total else "time left unknown")

    def line(self, text: str) -> None:
        """Print one line above the bar."""
        self._print(f"{self.label}: {text}", sys.stdout)

    def _print(self, text: str, stream: TextIO) -> None:
        with self._lock:
            Progress._spoken = clock()
            tqdm.write(text, file=stream)
            stream.flush()

    def _count(self) -> str:
        return f"{self.label}: {self.done}" + (f" of {self.total}" if self.total else "")

    def _tell(self) -> None:
        """Print how far it is and, before that, what it is a part of, if enough time has passed and no bar shows it."""
        if self._measured is not None:
            self.done = self.bar.n = self._measured()
            self.bar.refresh()
        if not self._speaks or not self.bar.disable or clock() - self._spoken < (EVERY if self._told else FIRST):
            return
        self._told = True
        around = [work._count() for work in self._open if work.unit and work is not self]
        own = f"{self._count()} | {self.rate()}" if self.unit else f"{self.label}: {self.rate()}"
        stream = next((work._stream for work in self._open if work._stream is not None), sys.stderr)
        self._print(" > ".join([*around, own]), stream)

    def __enter__(self) -> "Progress":
        with self._lock:
            if not self._open:
                Progress._spoken, Progress._watch = clock(), _Watch()
            self._open.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
        with self._lock:
            self._open.remove(self)
            watch = None if self._open else self._watch
        if watch is not None:
            watch.end()


def watched(items: Iterable[T], label: str, total: int, unit: str) -> Iterator[T]:
    """Yield the items, each a unit of work that is done when the next one is asked for."""
    with Progress(label, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def tick() -> None:
    """Let the innermost work print a line if it is time for one."""
    with Progress._lock:
        if Progress._open:
            Progress._open[-1]._tell()


class _Watch:
    """Thread that ticks until it is ended."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(PULSE):
            try:
                tick()
            except (OSError, ValueError):  # nobody reads the lines, or their disk is full: the work itself will say so
                return

    def end(self) -> None:
        """Stop it; it prints nothing any more."""
        self._ended.set()
        if threading.current_thread() is not self._thread:  # which may collect an abandoned iterator, and so end the last work
            self._thread.join()
