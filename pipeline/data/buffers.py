"""Memory for batches that is used again: fresh pages for every batch of states cost up to three times the reading itself."""

import sys
import threading

import numpy as np
import torch
from torch import Tensor

HELD = 16  # buffers that are kept for the next batches


def _references(held: list[np.ndarray], place: int) -> int:
    """To a buffer, this look at it included."""
    return sys.getrefcount(held[place])


UNUSED = _references([np.empty(1, np.uint8)], 0)  # that of a buffer which nothing but the list holds: differs among Pythons


class Buffers:
    """Hands out byte buffers; one whose tensor, with every view of it, is gone is handed out again."""

    def __init__(self) -> None:
        self._held: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """``size`` bytes, not initialised."""
        with self._lock:
            held = self._held
            for place in range(len(held)):
                # A tensor over an array holds a reference to it for as long as any tensor shares its storage.
                if held[place].nbytes >= size and _references(held, place) == UNUSED:
                    return torch.from_numpy(held[place])[:size]
            fresh = np.empty(size, np.uint8)
            self._held = [*held[-HELD + 1 :], fresh]
            return torch.from_numpy(fresh)[:size]
