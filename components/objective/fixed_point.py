"""A price on what the last supervised step still moves: a recursion that has settled says the same after any number of steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.ranges import PositiveFloat
from components.recursion import Tree, relative_square


@dataclass(frozen=True)
class FixedPoint:
    """Add weight * |s - s before|^2 / |s|^2 of each sequence to the last step's loss, s being the carry's states without padding.

    The divisor has no gradient: larger states are not a way out. It is summed over the sequences, as losses are, and over both
    states where there are two. Squared, since a refiner's first change is 0, where the root has no gradient.

    Args:
        weight: of the relative change beside a sequence's cross-entropy.

    Raises:
        ValueError: it is not above 0.

    Source: the relative residual of Bai, Kolter and Koltun, "Deep Equilibrium Models" (2019), here a price and no rule to stop by.
    """

    weight: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"fixed_point.FixedPoint needs a weight above 0, got {self.weight}")

    def __call__(self, before: Tree, after: Tree, model: Model, batch: Batch) -> Tensor:
        """Compute the price of a step from one carry to the next, summed over the sequences, in at least float32."""
        price = torch.zeros((), device=batch.tokens.device)
        for name in model.carried_states:
            state = after[name].to(torch.promote_types(after[name].dtype, torch.float32))
            price = price + relative_square(state - before[name], state.detach(), batch.present).sum()
        return self.weight * price
