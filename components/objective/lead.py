"""Steps that a recursion takes before the supervised ones, without gradient: training then sees the states of late steps too.

How many is a function of the optimizer step's noise key alone: the same in every microbatch and process, and in a run that was
killed, with nothing to save.
"""

import math
from dataclasses import dataclass

import torch

from components.noise import uniform
from components.ranges import Depth, Share


@dataclass(frozen=True)
class RandomLead:
    """Lead with chance ``share`` by m steps of 1 to ``most``, P(m) = log((m + 1) / m) / log(most + 1), else by none.

    Each doubling of m is about as likely as the next. With K supervised steps behind, a recursion so has a random number of steps,
    and its gradient is cut before the last K. What leads costs the forward pass of its steps, and no memory.

    Args:
        most: steps at most.
        share: of the optimizer steps in which other steps come before the supervised ones.

    Raises:
        ValueError: a number outside its range.

    Source: Geiping et al., "Scaling up Test-Time Compute with Latent Reasoning" (2025), section 3.3: a random number of steps, the
    last ones with gradient.
    """

    most: Depth = 64
    share: Share = 0.5

    def __post_init__(self) -> None:
        if self.most < 1 or not 0 <= self.share <= 1:
            raise ValueError(f"lead.RandomLead needs most of at least 1 and a share within 0..1, got {self.most} and {self.share}")

    @property
    def mean(self) -> float:
        """Average number of steps, those of optimizer steps without a lead included."""
        sums = sum(m * math.log((m + 1) / m) for m in range(1, self.most + 1))
        return self.share * sums / math.log(self.most + 1)

    def __call__(self, key: int) -> int:
        """Draw the number of steps of the optimizer step with this noise key."""
        chance, place = uniform(key, 0, torch.zeros(1, dtype=torch.int64), 2)[0].tolist()
        return min(int((self.most + 1) ** place), self.most) if chance < self.share else 0
