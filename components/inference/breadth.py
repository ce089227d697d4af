"""Breadth: the recursion begins several times, at the states as they are and at noised ones, and a rule chooses an answer.

Rules see no reference: which restart has settled most, which is surest, or which says what most others say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components import noise
from components.batch import Batch
from components.model import Model
from components.ranges import PositiveFloat, PositiveInt, SeveralSteps
from components.recursion import Tree, noised

BREADTH = 1 << 37  # stream of the noise that restarts begin with


@dataclass(frozen=True)
class Restarts:
    """What recursions from different starts say of the same sequences, and how they ended.

    Attributes:
        batch: the sequences.
        change: by how much the last step changed the states, |h - h before| / |h|.
        probability: mean over a sequence's masked tokens of the largest probability.
        answers: the most likely token at each masked position, sequence after sequence.
    """

    batch: Batch
    change: Float[Tensor, "restarts batch"]
    probability: Float[Tensor, "restarts batch"]
    answers: Int[Tensor, "restarts rows"]

    def first(self, number: int) -> "Restarts":
        """Return the first restarts alone."""
        return Restarts(self.batch, self.change[:number], self.probability[:number], self.answers[:number])


Chosen = Int[Tensor, "batch"]  # the restart that each sequence's answer is taken from, of equals the first
Choice = Callable[[Restarts], Chosen]


def by_change(restarts: Restarts) -> Chosen:
    """Choose the restart whose last step changed the states least.

    Source: Huang, Geng and Kolter, "Equilibrium Reasoners" (2026): among trajectories, the smallest residual.
    """
    return restarts.change.argmin(0)


def by_probability(restarts: Restarts) -> Chosen:
    """Choose the restart that is surest of its answer: the highest mean probability."""
    return restarts.probability.argmax(0)


def by_majority(restarts: Restarts) -> Chosen:
    """Choose a restart whose whole answer most of them give.

    Source: Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models" (2023).
    """
    tokens, masked = restarts.batch.tokens, restarts.batch.masked
    whole = torch.stack([tokens.masked_scatter(masked, answer.to(tokens.dtype)) for answer in restarts.answers])
    votes = torch.stack([(whole == one).all(-1).sum(0) for one in whole])
    return votes.argmax(0)


class Breadth:
    """Settings of restarts: how many, from where, of how many steps, and by which rules they are chosen from.

    Args:
        choices: name -> rule.
        restarts: numbers of recursions that are chosen from; fewer are the first of more, the very first is without noise.
        steps: of each recursion; None = as many as in training.
        noise: size of the noise on the states that a recursion begins with, over each token's root mean square.

    Raises:
        ValueError: there is nothing to choose from or by, or a number is out of range.
    """

    def __init__(
        self,
        choices: Mapping[str, Choice],
        restarts: Sequence[PositiveInt] = (1, 2, 4, 8, 16),
        steps: SeveralSteps | None = None,
        noise: PositiveFloat = 0.5,
    ) -> None:
        if not choices or not restarts or min(restarts) < 1 or len({*restarts}) < len(restarts):
            raise ValueError(
                f"choices must name a rule, and restarts different positive numbers, got {list(choices)} and {list(restarts)}"
            )
        if not noise > 0 or (steps is not None and steps < 2):
            raise ValueError(f"noise must be above 0 and steps at least 2 or None, got noise {noise} and steps {steps}")
        self.choices, self.restarts, self.steps, self.noise = dict(choices), sorted(restarts), steps, noise

    def start(self, number: int, carry: Tree, model: Model, batch: Batch, seed: int) -> Tree:
        """Make what restart ``number`` (from 0) begins with, of the carry that a recursion begins with.

        The noise is a function of seed, number and the sequence's tokens.
        """
        if not number:
            return carry
        uid = noise.identity(batch.tokens, batch.attention)
        return noised(carry, model.carried_states, self.noise, noise.key(seed, BREADTH, number), uid)
