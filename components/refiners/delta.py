"""How the states change by what the delta network proposes: an object, of which a model's file keeps name and sizes.

The confidence weighs the change: hidden <- hidden + confidence * change.

``Damped`` is the default. To bind another: ``refiner.SlotRefiner.update = @delta.Clamped()``, ``delta.Clamped.scale = 0.05``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from components.ranges import PositiveFloat


@dataclass(frozen=True)
class RmsScaled:
    """delta * rms of the backbone's hidden states: an update of O(1) is as large as the states it refines.

    Updates add up: the states grow with every step, by as much beyond the trained number as before it, and in the end say what all
    updates have in common (docs/ablations_depth.md).
    """

    silent: ClassVar[bool] = True  # the delta network's output starts at zero: no change before training
    anchored: ClassVar[bool] = False  # it asks where the recursion started

    def __call__(
        self,
        delta: Float[Tensor, "batch seq dim"],
        hidden_rms: Float[Tensor, ""],
        hidden: Float[Tensor, "batch seq dim"],
        start: Float[Tensor, "batch seq dim"],
    ) -> Float[Tensor, "batch seq dim"]:
        return delta * hidden_rms


@dataclass(frozen=True)
class Damped:
    """Move towards start + delta * rms instead of away by it: hidden <- (1 - c) hidden + c (start + delta * rms).

    c is the confidence; start the states that the recursion started from, the backbone's but where a refiner puts others there.
    What earlier steps added fades, so the states stay as near to the start as the largest proposal is, whatever number of steps is
    taken, and a recursion that settles has a fixed point: hidden = start + delta * rms. Without a proposal it stays at the start.

    Source: damped fixed-point (Krasnosel'skii-Mann) iteration, with a damping of each token's own that is learned.
    """

    silent: ClassVar[bool] = True
    anchored: ClassVar[bool] = True

    def __call__(
        self,
        delta: Float[Tensor, "batch seq dim"],
        hidden_rms: Float[Tensor, ""],
        hidden: Float[Tensor, "batch seq dim"],
        start: Float[Tensor, "batch seq dim"],
    ) -> Float[Tensor, "batch seq dim"]:
        return delta * hidden_rms + (start - hidden)


@dataclass(frozen=True)
class Clamped:
    """clamp(scale * tanh(delta), -limit, limit): the founding design, blind to the states' size. At scale .1 the clamp never acts.

    >>> state = torch.zeros(1, 1, 1)
    >>> Clamped()(state + 9.0, torch.ones(()), state, state).item() <= 0.1
    True

    Args:
        scale: largest change of a channel, ``delta_scale`` of the founding design; smaller if training is unstable.
        limit: where the change is cut off.

    Raises:
        ValueError: one of them is not above 0.
    """

    scale: PositiveFloat = 0.1
    limit: PositiveFloat = 0.5
    silent: ClassVar[bool] = False
    anchored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.scale > 0 and self.limit > 0):
            raise ValueError(f"the clamped update needs a scale and a limit above 0, got scale {self.scale} and limit {self.limit}")

    def __call__(
        self,
        delta: Float[Tensor, "batch seq dim"],
        hidden_rms: Float[Tensor, ""],
        hidden: Float[Tensor, "batch seq dim"],
        start: Float[Tensor, "batch seq dim"],
    ) -> Float[Tensor, "batch seq dim"]:
        return (torch.tanh(delta) * self.scale).clamp(-self.limit, self.limit)


Update = RmsScaled | Damped | Clamped
