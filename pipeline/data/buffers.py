"""Memory for batches that is used again: fresh pages for every batch of states cost up to three times the reading itself.

A buffer comes back when the array over it is collected, and a tensor over an array holds that array for as long as any tensor
shares its storage: so a buffer is never handed out while anything can see it, however many batches wait, and for whom.
"""

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

SPARE = 16  # unused buffers that are kept for the next batches


class Buffers:
    """Hands out byte buffers; one whose tensor, with every view of it, is gone is handed out again."""

    def __init__(self) -> None:
        self._spare: deque[np.ndarray] = deque(maxlen=SPARE)  # its appends and pops are atomic: no lock

    def take(self, size: int) -> Tensor:
        """Hand out ``size`` bytes, which are not initialised."""
        memory: np.ndarray = np.empty(0, np.uint8)
        for _ in range(len(self._spare)):
            try:
                memory = self._spare.pop()
            except IndexError:  # another thread took the last
                break
            if memory.nbytes >= size:
                break
        if memory.nbytes < size:
            memory = np.empty(size, np.uint8)
        view = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(view, self._spare.append, memory).atexit = False
        return torch.from_numpy(view)
