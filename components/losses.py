"""The training loss: cross-entropy at supervised positions only.

Rows are gathered *before* the final norm and head: with 20 % of positions masked this is 3.7x less head work than computing all
logits and masking the loss.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from components.batch import Batch


def masked_cross_entropy(
    readout: Callable[[Tensor], Tensor], state: Float[Tensor, "batch seq dim"], batch: Batch
) -> Float[Tensor, ""]:
    """sum over supervised positions of weight * -log p(target), in float32. Divide by the sequences of the *optimizer step*.

    A sum, not a mean: microbatches and processes can then be added up in any grouping, and the result is the same objective.

    Args:
        readout: maps states to logits (the backbone's frozen norm and head).
        state: one recursion step's states.
        batch: targets, masked positions and weights.
    """
    logits = readout(state[batch.masked])
    nll = F.cross_entropy(logits.float(), batch.targets[batch.masked].long(), reduction="none")
    return (nll * batch.weights[batch.masked]).sum()
