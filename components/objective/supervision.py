"""Deep supervision: the weight of each recursion step's loss; the loss is sum_k weight_k * loss_k. The last step weighs 1.

``weight`` is what the project's founding note on deep supervision calls ``deep_supervision_weight`` (0.3 to 0.7 there).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from components.ranges import NonNegativeFloat


class LearnedWeights(nn.Module):
    """Weight exp(-s_k) of step k, where s_k is trained: sum_k exp(-s_k) loss_k + s_k. Noisy steps come to weigh less.

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses" (2018), equation 10 up to a factor.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(steps))

    def weights(self) -> list[Tensor]:
        """Compute each step's weight exp(-s_k), without gradient."""
        return list(torch.exp(-self.log_variance.detach()).unbind())

    def backward(self, losses: Sequence[Tensor], share: float) -> None:
        """Add the gradient of s, given a microbatch's part of each step's loss and its share of the optimizer step."""
        measured = torch.stack(list(losses)).detach().to(self.log_variance)
        total = (torch.exp(-self.log_variance) * measured + share * self.log_variance).sum()
        total.backward()


Weights = list[float] | LearnedWeights
Supervision = Callable[[int], Weights]


def constant(steps: int, weight: NonNegativeFloat = 0.5) -> list[float]:
    """Every intermediate step weighs the same: ``weight``.

    >>> constant(3)
    [0.5, 0.5, 1.0]
    """
    return [*([weight] * (steps - 1)), 1.0]


def linear_decay(steps: int, weight: NonNegativeFloat = 0.5) -> list[float]:
    """Intermediate step k of K (from 1) weighs ``weight * k / K``: later steps matter more.

    >>> [round(w, 2) for w in linear_decay(3)]
    [0.17, 0.33, 1.0]
    """
    return [*(weight * k / steps for k in range(1, steps)), 1.0]


def exponential_decay(steps: int, weight: NonNegativeFloat = 0.5) -> list[float]:
    """Intermediate step k of K (from 1) weighs ``weight * 2^(k - K)``: halved with each step away from the last.

    >>> exponential_decay(3)
    [0.125, 0.25, 1.0]
    """
    return [*(weight * 2.0 ** (k - steps) for k in range(1, steps)), 1.0]


def u_shaped(steps: int, weight: NonNegativeFloat = 0.5) -> list[float]:
    """First and last steps matter, those between less: step k of K (from 1) weighs ``weight * (2 (k - 1) / (K - 1) - 1)^2``.

    >>> u_shaped(5)
    [0.5, 0.125, 0.0, 0.125, 1.0]
    """
    return [*(weight * (2 * (k - 1) / (steps - 1) - 1) ** 2 for k in range(1, steps)), 1.0]


def custom(steps: int, weights: Sequence[NonNegativeFloat] = ()) -> list[float]:
    """Take the weights as they are given, one a step.

    >>> custom(3, (0.1, 0.4, 1.0))
    [0.1, 0.4, 1.0]

    Raises:
        ValueError: another number of weights than steps, a negative one, or none for the last step.
    """
    if len(weights) != steps or min(weights) < 0 or weights[-1] == 0:
        raise ValueError(f"supervision.custom needs {steps} weights, none negative, the last above 0, got {list(weights)}")
    return [float(weight) for weight in weights]


def last_only(steps: int) -> list[float]:
    """No deep supervision: the last step alone.

    >>> last_only(3)
    [0.0, 0.0, 1.0]
    """
    return [*([0.0] * (steps - 1)), 1.0]


def learned(steps: int) -> LearnedWeights:
    """Weights that are trained along, by each step's uncertainty."""
    return LearnedWeights(steps)


def supervised_steps(steps: int, progress: float) -> int:
    """Count the first steps that a curriculum supervises: one, then one more with each K-th part of ``progress``, at last all.

    The recursion first learns to take one good step, then a second ...

    >>> [supervised_steps(3, p) for p in (0.0, 0.4, 0.9, 1.0)]
    [1, 2, 3, 3]

    Args:
        steps: K.
        progress: of the curriculum, from 0 on; 1 = all steps are supervised.
    """
    return min(steps, 1 + int(progress * steps))


def of_first_steps(schedule: Callable[[int], list[float]], steps: int, depth: int) -> list[float]:
    """Weigh the first ``depth`` of ``steps`` steps as if there were no others; those beyond weigh 0.

    >>> of_first_steps(constant, 3, 2)
    [0.5, 1.0, 0.0]
    """
    return [*schedule(depth), *([0.0] * (steps - depth))]
