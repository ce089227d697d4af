"""Cross-entropy of a linear head without its logits: they exist for some rows at a time, and the gradient is made with them.

Two matrix products a row for a frozen head (logits, gradient of the rows), three for a trained one: the floor. Only tensors of
the rows' size survive until the backward pass.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.nn.fused import by_onednn, onednn

CHUNK_ROWS = 512  # rows whose logits exist at once; fewer would read a large head from memory for too little work


def linear_cross_entropy(
    rows: Float[Tensor, "rows dim"],
    head: Float[Tensor, "vocab dim"],
    targets: Int[Tensor, "rows"],
    weights: Float[Tensor, "rows"],
    *,
    bias: Float[Tensor, "vocab"] | None = None,
    chunk: int = CHUNK_ROWS,
    compute: bool = True,
) -> tuple[Float[Tensor, ""], Bool[Tensor, "rows"]]:
    """sum_i weights_i * -log softmax(head rows_i + bias)[targets_i], in at least float32; and whether targets have the largest.

    Under autocast both products run in its precision; softmax, loss and the head's gradient stay in float32. The result is a pure
    function of the arguments: ``chunk`` never follows the memory that happens to be free.

    Args:
        rows: normed states of supervised positions: gather first.
        head: weight of the head, frozen or trained.
        targets: token ids.
        weights: of the loss; 0 leaves a row out.
        bias: of the head, if it has one.
        chunk: rows whose logits exist at once.
        compute: False leaves a zero of the same graph, for a forward pass that is made again
            (``components.objective.activations``).
    """
    if not rows.is_meta and torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, head, bias = rows.to(dtype), head.to(dtype), None if bias is None else bias.to(dtype)
    if not torch.is_grad_enabled():
        rows, head, bias = rows.detach(), head.detach(), None if bias is None else bias.detach()
    loss, right = _LinearCrossEntropy.apply(rows, head, bias, targets, weights, chunk, compute)
    return loss, right


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient for a loss of weight 1 is made in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, chunk: int, compute: bool
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(torch.float32, rows.dtype)
        to_rows, to_head, to_bias = ctx.needs_input_grad[:3]
        gradient = torch.empty_like(rows) if to_rows else None
        head_gradient = torch.zeros_like(head, dtype=wide) if to_head else None
        bias_gradient = torch.zeros_like(bias, dtype=wide) if bias is not None and to_bias else None
        loss, right = rows.new_zeros((), dtype=wide), torch.zeros_like(targets, dtype=torch.bool)
        fast = by_onednn(rows, head)
        buffer = rows.new_empty(min(chunk, len(rows)) if compute and not fast else 0, len(head))  # for all: a new one costs time
        for first in range(0, len(rows) if compute else 0, chunk):
            part = slice(first, first + chunk)
            logits = onednn(rows[part], head) if fast else torch.mm(rows[part], head.T, out=buffer[: len(rows[part])])
            if bias is not None:
                logits += bias
            weight = weights[part].to(wide)
            by_logits, nll, right[part] = _softmax_gradient(logits.to(wide), targets[part], weight)
            loss += (nll * weight).sum()  # a product would be one of autocast's
            if not (to_rows or to_head or to_bias):
                del logits, by_logits  # before the next are made
                continue
            if bias_gradient is not None:
                bias_gradient += by_logits.sum(0)
            by_logits = logits.copy_(by_logits)  # nothing is copied unless it is wider
            if gradient is not None:
                if fast:
                    gradient[part] = onednn(by_logits, head.T)
                else:
                    torch.mm(by_logits, head, out=gradient[part])
            if head_gradient is not None:
                head_gradient += by_logits.T @ rows[part]
            del logits, by_logits
        ctx.save_for_backward(gradient, head_gradient, bias_gradient)
        ctx.mark_non_differentiable(right)
        ctx.dtype = head.dtype
        return loss, right

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass made."""
        gradient, head_gradient, bias_gradient = ctx.saved_tensors
        return (
            None if gradient is None else gradient * scale.to(gradient.dtype),
            None if head_gradient is None else (head_gradient * scale).to(ctx.dtype),
            None if bias_gradient is None else (bias_gradient * scale).to(ctx.dtype),
            None, None, None, None,
        )  # fmt: skip


def _softmax_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """weights * (softmax - one-hot target), written over the logits; -log p(target); whether the target has the largest logit."""
    largest = logits.amax(1, keepdim=True)
    target = logits.gather(1, targets[:, None])
    right = (target == largest)[:, 0]
    exponential = logits.sub_(largest).exp_()
    total = exponential.sum(1)
    gradient = exponential.mul_((weights / total)[:, None])
    gradient[torch.arange(len(gradient), device=gradient.device), targets] -= weights
    return gradient, total.log() - (target - largest)[:, 0], right
