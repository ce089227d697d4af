"""Likelihood of a whole answer under a masked-diffusion model: a Monte-Carlo estimate of its variational bound.

-log p(answer | prompt) <= E_l [ L/l * sum of the cross-entropies of l masked tokens ], l ~ U{1..L}: the count form, whose variance
is far below that of masking each token by chance (see ``components.objective.masking``). The samples of an answer share the
counts among them (l is stratified), which takes more of the variance away.
Source: Nie et al., "Large Language Diffusion Models" (LLaDA, 2025), eq. 6 and section B.5 (128 samples).
"""

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components import noise
from components.objective import masking
from components.ranges import PositiveInt, Range

LIKELIHOOD = 1 << 35  # first stream of the masks of samples: common random numbers across models
SHARED = (1 << 35) - 1  # stream of where an answer's samples begin


class Likelihood:
    """Settings of the estimate: how many examples, and how many masks of each.

    Args:
        items: examples, the first of the split.
        samples: masks of each, at least two.
        split: that the examples are taken from.

    Raises:
        ValueError: a number is too small.
    """

    def __init__(self, items: PositiveInt = 128, samples: Annotated[int, Range(ge=2)] = 8, split: str = "test") -> None:
        if items < 1 or samples < 2:
            raise ValueError(f"items must be at least 1 and samples at least 2, got {items} and {samples}")
        self.items, self.samples, self.split = items, samples, split


def masks(
    response: Bool[Tensor, "batch seq"], uid: Int[Tensor, "batch"], seed: int, samples: int
) -> Iterator[tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]]:
    """Masks and weights of each sample: exactly l of an answer's L tokens, weight L/l each, l stratified over the samples.

    The sum of weights * cross_entropy over a row, averaged over the samples, is the estimate of its bound. A row's masks depend on
    ``seed``, its uid and ``samples`` alone.

    Args:
        response: True at the answer.
        uid: identity of each row.
        seed: of the masks.
        samples: masks of each row.
    """
    length = response.sum(1, keepdim=True).float()
    first = noise.uniform(seed, SHARED, uid, 1)
    for sample in range(samples):
        numbers = noise.uniform(seed, LIKELIHOOD + sample, uid, response.shape[1] + 1)
        numbers[:, :1] = (first + sample) / samples  # decides l
        masked, weights = masking.exact_count(response, numbers)
        yield masked, weights * length


def standard_error(values: Float[Tensor, "items samples"]) -> float:
    """Estimate the error of the mean over all items, as far as the samples cause it; 0 for a single one, which is exact.

    Samples of an item are taken as independent; that they share the counts makes the true error smaller.
    """
    items, samples = values.shape
    return float((values.double().var(1).sum() / samples).sqrt() / items) if samples > 1 else 0.0


def total(losses: Float[Tensor, "rows"], masked: Bool[Tensor, "batch seq"], weights: Float[Tensor, "batch seq"]) -> Tensor:
    """Weighted sum over each row of the losses at its masked positions (in row-major order); float64."""
    row = masked.nonzero()[:, 0]
    terms = losses.double() * weights[masked].double()
    return torch.zeros(len(masked), dtype=torch.float64, device=losses.device).index_add(0, row, terms)
