"""Exponential moving average of trainable parameters: what is validated, saved and evaluated."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from components.ranges import Decay, in_range


class EMA:
    """average <- decay * average + (1 - decay) * parameters, with decay ramped up as (1 + n) / (10 + n) over the first updates.

    Args:
        parameters: those that are trainable are averaged.
        decay: 0 = the parameters themselves, and nothing is held beside them.

    Attributes:
        average: of each trainable parameter, in their order; empty where decay is 0.

    Raises:
        ValueError: decay outside its range.
    """

    @in_range
    def __init__(self, parameters: Iterable[Tensor], decay: Decay) -> None:
        self.decay, self.updates = decay, 0
        self.parameters: list[Tensor] = [p for p in parameters if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the average."""
        self.updates += 1
        if self.average:
            decay = min(self.decay, self.updates / (9 + self.updates))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold the average, and it holds them: nothing may write to either there. Afterwards both
        are what they were, bit for bit. It takes the memory of one parameter more.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=bool(self.average)):
            own = parameter.clone()
            parameter.copy_(average)
            average.copy_(own)
