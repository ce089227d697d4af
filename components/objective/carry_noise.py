"""Noise on the carry in training: the recursion learns to come to the same answer from states that it never made.

A function of the optimizer step's noise key, of the step's number and of each sequence's tokens: the same in any microbatch and
process and in a run that was killed, with nothing to save.
"""

from dataclasses import dataclass

from components import noise
from components.batch import Batch
from components.model import Model
from components.ranges import NonNegativeFloat
from components.recursion import Tree, noised

CARRY = 1 << 36  # stream of this noise


@dataclass(frozen=True)
class CarryNoise:
    """Add normal noise to the states that training's steps start from; sizes are of each token's root mean square.

    Args:
        start: on what a recursion begins with, before any step, one without gradient included.
        each: on what every later supervised step starts from.

    Raises:
        ValueError: a size below 0.

    Source: Huang, Geng and Kolter, "Equilibrium Reasoners" (2026): random starts, and noise on the path, so that right answers
    attract from afar.
    """

    start: NonNegativeFloat = 0.5
    each: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if not (self.start >= 0 and self.each >= 0):
            raise ValueError(f"carry_noise.CarryNoise needs sizes of at least 0, got start {self.start} and each {self.each}")

    def __call__(self, key: int, number: int, carry: Tree, model: Model, batch: Batch) -> Tree:
        """Return the carry that supervised step ``number`` starts from in the optimizer step with this noise key."""
        size = self.each if number else self.start
        if not size:
            return carry
        uid = noise.identity(batch.tokens, batch.attention)
        return noised(carry, model.carried_states, size, noise.key(key, CARRY, number), uid)
