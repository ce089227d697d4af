"""What denoising passes over the same sequences hand on, for models that remember: the last carry of each row's pass before.

A row moves on when its tokens change. One that waits (its block is decided, that of another row is not) is asked again as it was
before, so that what is said of a row depends on its own passes alone, whatever it is batched with.
"""

from collections import deque

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.recursion import State, Tree
from components.refiners.core import recur


class PassMemory:
    """The memory of one decode; the first pass begins without any."""

    def __init__(self) -> None:
        self._tokens: Int[Tensor, "batch seq"] | None = None
        self._entered: Tree = {}  # what each row's newest pass began with
        self._left: Tree = {}  # and what it ended with

    def run(self, model: Model, batch: Batch) -> State:
        """Run a pass: all recursion steps, from where each row's pass before ended.

        Args:
            model: that remembers.
            batch: the same sequences each time, as they are before this pass.

        Returns:
            The last step's state.
        """
        condition, fresh, layout = model.begin(batch)
        carry = fresh
        if self._tokens is None:
            self._entered = fresh
        else:
            moved = (batch.tokens != self._tokens).any(1)
            self._entered = {name: _rows(moved, self._left[name], self._entered[name]) for name in fresh}
            carry = model.recalled(fresh, self._entered)  # a row that has not moved yet meets its own beginning: nothing is mixed
        state = deque(recur(model.step, range(model.n_steps), carry, condition, layout, False), maxlen=1).pop()
        self._tokens, self._left = batch.tokens, state.carry
        return state


def _rows(chosen: Bool[Tensor, "batch"], one: Tensor, other: Tensor) -> Tensor:
    return torch.where(rearrange(chosen, "batch -> batch 1 1"), one, other)
