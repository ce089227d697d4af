"""From the states of a sentence's tokens to its embedding. Padding stands behind the tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Pooling = Callable[[Tensor, Tensor], Tensor]


def mean(states: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"]) -> Tensor:
    """Mean over a sentence's tokens, special ones included: SONAR's."""
    mask = attention[..., None].to(states)
    return (states * mask).sum(1) / mask.sum(1)


def unit_mean(states: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"]) -> Tensor:
    """``mean``, scaled to length 1: MiniLM's and most others'."""
    return F.normalize(mean(states, attention), dim=-1)


def mean_over_root(states: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"]) -> Tensor:
    """Sum over a sentence's tokens, divided by the root of their number."""
    mask = attention[..., None].to(states)
    return (states * mask).sum(1) / mask.sum(1).sqrt()


def maximum(states: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"]) -> Tensor:
    """Largest value over a sentence's tokens, of each dimension."""
    return states.masked_fill(~attention[..., None], -torch.inf).amax(1)


def first(states: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"]) -> Tensor:
    """State of the first token, the classifier's of BERT: BGE's and GTE's."""
    return states[:, 0]


def last(states: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"]) -> Tensor:
    """State of a sentence's last token: that of encoders that were causal models."""
    return states[torch.arange(len(states), device=states.device), attention.sum(1) - 1]


@dataclass(frozen=True)
class Unit:
    """Scale another pooling's embeddings to length 1.

    Attributes:
        pooling: which.
    """

    pooling: Pooling

    def __call__(self, states: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"]) -> Tensor:
        return F.normalize(self.pooling(states, attention), dim=-1)
