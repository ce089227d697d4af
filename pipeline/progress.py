"""Progress of long work: rate and time left, as a bar on a terminal and as plain lines elsewhere. The only door to ``tqdm``."""

import os
import sys
import time
from types import TracebackType

from tqdm import tqdm

BEAT = 20.0  # seconds between lines in a log


class Progress:
    """A bar of ``total`` units; ``line`` prints above it.

    >>> with Progress("extract", 2, "rows") as bar:  # doctest: +SKIP
    ...     bar.advance(1)
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._first, self._done, self._started = done, done, time.monotonic()
        self._told = self._started
        hidden = not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
        self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, dynamic_ncols=True, disable=hidden, leave=False)

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more units as done."""
        self._done += n
        self.bar.update(n)

    def speed(self) -> float:
        """Compute the units a second, since it began."""
        return (self._done - self._first) / max(1e-9, time.monotonic() - self._started)

    def rate(self) -> str:
        """Write the units a second and the seconds left."""
        rate = self.speed()
        left = f"{(self.total - self._done) / rate:.0f} s left" if rate and self.total else "time left unknown"
        return f"{rate:.1f} {self.unit}s/s, {left}"

    def line(self, text: str) -> None:
        """Print one line above the bar."""
        tqdm.write(f"{self.label}: {text}")
        sys.stdout.flush()

    def beat(self) -> None:
        """Print a line with rate and time left, if ``BEAT`` seconds went by without one and no bar shows them."""
        if self.bar.disable and os.environ.get("RANK", "0") == "0" and time.monotonic() - self._told >= BEAT:
            self._told = time.monotonic()
            total = f" of {self.total}" if self.total else ""
            self.line(f"{self._done}{total} | {self.rate()}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
