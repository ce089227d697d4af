"""The training loss, at supervised positions only: cross-entropy of tokens, or the distance of predicted embeddings.

Rows are gathered *before* the final norm and head: with 20 % of positions masked this is 3.7x less head work than computing all
logits and masking the loss. Distances are to the target's row of the head (``components.backbones.sentence_table``).
"""

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from components.batch import Batch
from components.model import Model
from components.objective.linear_cross_entropy import CHUNK_ROWS, linear_cross_entropy
from components.ranges import PositiveInt

CLOSE = 0.9  # cosine from which an embedding counts as right
HALTING = 0.5  # weight of the halting loss beside the cross-entropy of a sequence


@runtime_checkable
class Loss(Protocol):
    """Interface of a loss of one step's states: their sum, and which rows are right."""

    def __call__(self, model: Model, hidden: Tensor, batch: Batch, *, compute: bool) -> tuple[Tensor, Tensor]: ...


def masked_cross_entropy(
    model: Model, hidden: Float[Tensor, "batch seq dim"], batch: Batch, *, compute: bool, chunk: PositiveInt = CHUNK_ROWS
) -> tuple[Float[Tensor, ""], Bool[Tensor, "rows"]]:
    """sum over supervised positions of weight * -log p(target), in float32; and which of them are right.

    A sum, not a mean: microbatches and processes can then be added up in any grouping, and the result is the same objective.
    Divide by the sequences of the *optimizer step*.

    Args:
        model: norms and reads out states.
        hidden: one step's states.
        batch: targets, masked positions and weights.
        compute: False where the sum is not used: see ``linear_cross_entropy``.
        chunk: rows whose logits exist at once.
    """
    rows = batch.supervised
    states = model.normed(rearrange(hidden, "batch seq dim -> (batch seq) dim").index_select(0, rows))
    targets, weights = batch.targets.flatten()[rows].long(), batch.weights.flatten()[rows]
    return linear_cross_entropy(states, model.head.weight, targets, weights, bias=model.head.bias, chunk=chunk, compute=compute)


def squared_error(
    model: Model, hidden: Float[Tensor, "batch seq dim"], batch: Batch, *, compute: bool
) -> tuple[Float[Tensor, ""], Bool[Tensor, "rows"]]:
    """sum over supervised positions of weight * mean over channels of (state - the target's row)^2; and which are close to it.

    Args:
        model, hidden, batch: see ``masked_cross_entropy``.
        compute: without meaning here: there are no logits to spare.
    """
    states, targets, weights = _embeddings(model, hidden, batch)
    loss = ((states - targets).square().mean(-1) * weights).sum()
    return loss, F.cosine_similarity(states.detach(), targets, dim=-1) >= CLOSE


def cosine_distance(
    model: Model, hidden: Float[Tensor, "batch seq dim"], batch: Batch, *, compute: bool
) -> tuple[Float[Tensor, ""], Bool[Tensor, "rows"]]:
    """sum over supervised positions of weight * (1 - cosine of state and the target's row); else as ``squared_error``."""
    states, targets, weights = _embeddings(model, hidden, batch)
    cosine = F.cosine_similarity(states, targets, dim=-1)
    return ((1 - cosine) * weights).sum(), cosine.detach() >= CLOSE


def _embeddings(
    model: Model, hidden: Float[Tensor, "batch seq dim"], batch: Batch
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"], Float[Tensor, "rows"]]:
    """Predicted and true embeddings of the supervised positions, in at least float32, and their weights."""
    rows = batch.supervised
    states = model.normed(rearrange(hidden, "batch seq dim -> (batch seq) dim").index_select(0, rows))
    states = states.to(torch.promote_types(torch.float32, states.dtype))
    targets = model.head.weight[batch.targets.flatten()[rows].long()].to(states)
    return states, targets, batch.weights.flatten()[rows].to(states)


def halting_loss(halt: Float[Tensor, "batch"], right: Bool[Tensor, "rows"], batch: Batch) -> Float[Tensor, ""]:
    """Sum over sequences of the binary cross-entropy between "halt here" and "every supervised token is right", in at
    least float32.

    Source: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks" (2025), section 4.6, without its
    continue loss.
    """
    halt = halt.to(torch.promote_types(torch.float32, halt.dtype))
    wrong = batch.per_sequence((~right).to(halt))
    return F.binary_cross_entropy_with_logits(halt, (wrong == 0).to(halt), reduction="sum")
