"""Memory for batches that is used again: fresh pages for every batch of states cost up to three times the reading itself."""

import sys
import threading

import numpy as np
import torch
from torch import Tensor

HELD = 16  # buffers that are kept for the next batches
UNUSED = 3  # references to a buffer that nothing but its place in the list, the loop below and the count itself hold


class Buffers:
    """Hands out byte buffers; one whose tensor, with every view of it, is gone is handed out again."""

    def __init__(self) -> None:
        self._held: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """``size`` bytes, not initialised."""
        with self._lock:
            for buffer in self._held:
                # A tensor over an array holds a reference to it for as long as any tensor shares its storage.
                if buffer.nbytes >= size and sys.getrefcount(buffer) == UNUSED:
                    break
            else:
                buffer = np.empty(size, np.uint8)
                self._held = [*self._held[-HELD + 1 :], buffer]
            return torch.from_numpy(buffer)[:size]
