"""Revising: while an answer is decoded, tokens that the model no longer believes in are masked again and decided anew.

A rule sees how probable every decided token of the block is now, in the pass that also predicts the masked ones; what it chooses is
masked from the next pass on. It costs no run of the model: the sampler's passes are as many as without.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from components.ranges import PositiveInt, Share

Decided = Bool[Tensor, "batch seq"]
# probability of each token in the present pass, which of them are decided and may be masked again -> which of those are
Rule = Callable[[Float[Tensor, "batch seq"], Decided], Decided]


def below_threshold(probability: Float[Tensor, "batch seq"], decided: Decided, threshold: Share = 0.5) -> Decided:
    """Choose the decided tokens whose probability has fallen below ``threshold``.

    Source: Bie et al., LLaDA2.1 (2026), which edits tokens by a threshold of their own; here they are masked, and compete again.
    """
    return decided & (probability < threshold)


def least_probable(probability: Float[Tensor, "batch seq"], decided: Decided, number: PositiveInt = 1) -> Decided:
    """Choose the ``number`` least probable of each row's decided tokens, the first of equal ones.

    Source: Kim et al., PRISM (2025), inference, with the model's own probability where PRISM trains a head for it.
    """
    score = probability.masked_fill(~decided, 2.0)
    return decided & (score.argsort(dim=1, stable=True).argsort(dim=1, stable=True) < number)
