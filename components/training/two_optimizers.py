"""TwoOptimizers: an optimizer for some parameters and another for the rest, as one to whoever steps, schedules or saves it."""

from collections.abc import Sequence
from typing import Any

import torch


class TwoOptimizers(torch.optim.Optimizer):
    """Optimizers over different parameters behind one interface: their groups in a row, their states in one table.

    Args:
        parts: the optimizers; groups and states are theirs, and stay so when a state is loaded.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._join()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and states, which a loaded state brings anew."""
        super().__setstate__(state)
        self._join()

    def _join(self) -> None:
        """Let every part work on its share of the groups and on the one table of states."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state, part.param_groups = self.state, [next(groups) for _ in part.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing is evaluated anew
        """Take a step of each part."""
        for part in self.parts:
            part.step()
