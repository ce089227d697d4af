"""Whether what a thread waits for is still worth waiting for: asked by what waits for another machine."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.machine import process

GRACE = 10.0  # seconds that an answer may take once this process has been asked to end: all of a job's should save the same step
_abandoned: set[int] = set()  # threads


@contextmanager
def abandoned(threads: Iterable[int]) -> Iterator[None]:
    """Within the block nobody wants what these threads, by their identifiers, are making."""
    added = {*threads} - _abandoned
    _abandoned.update(added)
    try:
        yield
    finally:
        _abandoned.difference_update(added)


def given_up() -> bool:
    """Tell whether this thread should wait no longer: it is abandoned, or this process was asked to end ``GRACE`` seconds ago."""
    since = process.terminated_at()
    return threading.get_ident() in _abandoned or (since is not None and time.monotonic() >= since + GRACE)
