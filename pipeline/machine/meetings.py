"""How often each process of a job has gone to meet the others: who has lost them names those that did not come.

Where a library lets them meet, nobody counts. There those that wait in vain give up at nearly the same time, for the first to do so
closes the others' connections, and who hangs is the one that does not say that it has lost the others.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

ANSWER = 10.0  # seconds to wait for the others' word, and for the store, which does not answer where its own process stands still
LOST = "inf"  # in place of the count of a process that has lost the others
PAUSE = 0.2  # seconds between looks at what the others say


class Meetings:
    """A count for each process in a store that all share.

    Only who waits for more than a second writes to it, from a thread: the store's answer takes longer than many a sum.

    Args:
        store: that all processes share.
        rank: number of this process, from 0.
        world: how many there are.
        owner: the process that has the store.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, owner: int = 0) -> None:
        self._store, self._rank, self._world, self._owner = store, rank, world, owner
        self._count, self._waits, self._over = 0, False, threading.Event()
        store.set(str(rank), "0")
        threading.Thread(target=self._write, daemon=True).start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for the others within the block."""
        self._count, self._waits = self._count + 1, True
        try:
            yield
        finally:
            self._waits = False

    def absent(self) -> list[int]:
        """Say that this process has lost the others, and list those that stay away: they have come less often than it, and do not
        say the same within ``ANSWER`` seconds. The store's owner, if that does not answer.
        """
        self._over.set()
        others, until = [number for number in range(self._world) if number != self._rank], time.monotonic() + ANSWER
        behind = [others]  # after each look
        if len(others) == 1:
            return others

        def ask() -> None:
            try:
                self._store.set(str(self._rank), LOST)
                while len(behind[-1]) > 1 and time.monotonic() < until:  # one that is left needs no time to say so
                    counts = map(float, self._store.multi_get([*map(str, others)]))
                    behind.append([number for number, count in zip(others, counts, strict=True) if count < self._count])
                    time.sleep(PAUSE)
            except RuntimeError:  # the store has gone, with the process that lost the others before this one
                behind.append([])

        asking = threading.Thread(target=ask, daemon=True)  # the store's own limit does not hold where its process stands still
        asking.start()
        asking.join(ANSWER)
        return behind[-1] if len(behind) > 1 else [self._owner]

    def end(self) -> None:
        """End the thread; the store may go."""
        self._over.set()

    def _write(self) -> None:
        before, written = 0, 0
        with contextlib.suppress(RuntimeError):  # the store has gone
            while not self._over.wait(1.0):
                if self._waits and written < self._count == before:
                    self._store.set(str(self._rank), str(self._count))
                    written = self._count
                before = self._count
