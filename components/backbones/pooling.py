"""From the states of a sentence's tokens to its embedding."""

from collections.abc import Callable

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
