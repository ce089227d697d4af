"""How often each process of a job has gone to meet the others: who has waited in vain names those that did not come."""

import contextlib
import threading
from collections.abc import Iterator

import torch.distributed as dist

ANSWER = 10.0  # seconds to wait for the store, which does not answer where its own process stands still


class Meetings:
    """A count for each process in a store that all share.

    Only who waits for more than a second writes to it, from a thread: the store's answer takes longer than many a sum.

    Args:
        store: that all processes share; the first one has it.
        rank: number of this process, from 0.
        world: how many there are.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
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
        """List the processes that have come less often than this one; the first, if its store does not answer."""
        behind = list[int]()

        def ask() -> None:
            with contextlib.suppress(RuntimeError):  # the store has gone, with the process that waited in vain before this one
                counts = [int(self._store.get(str(number))) for number in range(self._world)]
                behind.extend(number for number, count in enumerate(counts) if count < self._count and number != self._rank)

        asking = threading.Thread(target=ask, daemon=True)  # the store's own limit does not hold where its process stands still
        asking.start()
        asking.join(ANSWER)
        return [0] if asking.is_alive() else behind

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
