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
        decay: 0 = the parameters themselves.

    Raises:
        ValueError: decay outside its range.
    """

    @in_range
    def __init__(self, parameters: Iterable[Tensor], decay: Decay) -> None:
        self.decay, self.updates = decay, 0
        self.parameters: list[Tensor] = [p for p in parameters if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the average."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates)) if self.decay else 0.0
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold the average; afterwards its own parameters again, bit for bit."""
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)
