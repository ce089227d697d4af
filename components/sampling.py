"""Decoding a masked-diffusion model: everything at once, or a few tokens at a time, most certain first."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Predict = Callable[[Int[Tensor, "batch seq"]], Float[Tensor, "batch seq vocab"]]


def parallel(predict: Predict, tokens: Int[Tensor, "batch seq"], mask_id: int) -> Int[Tensor, "batch seq"]:
    """Fill every masked position from one pass with its most likely token; the mask itself is never predicted."""
    return torch.where(tokens == mask_id, _best(predict(tokens), mask_id)[1], tokens)


def low_confidence_remasking(
    predict: Predict, tokens: Int[Tensor, "batch seq"], mask_id: int, steps: int, blocks: int = 1
) -> Int[Tensor, "batch seq"]:
    """Decode in ``steps`` passes: predict all masked tokens, keep the most certain ones, mask the rest again.

    The masked positions of each row are cut left to right into ``blocks`` equal blocks, decoded one after the other
    (semi-autoregressive); each block takes ``steps / blocks`` passes and commits an equal share in each, the remainder first.
    Source: Nie et al., LLaDA (2025), algorithm 5 (low-confidence remasking) and section B.4 (blocks).

    Args:
        predict: token ids -> logits, one full pass.
        tokens: prompt and ``mask_id`` wherever a token is wanted.
        mask_id: never predicted.
        steps: passes in all.
        blocks: 1 = pure diffusion.

    Raises:
        ValueError: blocks do not divide steps.
    """
    if steps < 1 or blocks < 1 or steps % blocks:
        raise ValueError(f"steps must be a positive multiple of blocks, got steps {steps} and blocks {blocks}")
    masked = tokens == mask_id
    order = masked.cumsum(1) - 1
    total = masked.sum(1, keepdim=True)
    for block in range(blocks):
        inside = masked & (order >= total * block // blocks) & (order < total * (block + 1) // blocks)
        tokens = _decode_block(predict, tokens, mask_id, inside, steps // blocks)
    return tokens


def _decode_block(
    predict: Predict, tokens: Int[Tensor, "batch seq"], mask_id: int, inside: Bool[Tensor, "batch seq"], steps: int
) -> Int[Tensor, "batch seq"]:
    size = inside.sum(1, keepdim=True)
    for step in range(steps):
        candidates = inside & (tokens == mask_id)
        probability, best = _best(predict(tokens), mask_id)
        rank = probability.masked_fill(~candidates, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        keep_masked = size // steps * (steps - 1 - step) + (size % steps - 1 - step).clamp_min(0)
        commit = candidates.sum(1, keepdim=True) - keep_masked
        tokens = torch.where(candidates & (rank < commit), best, tokens)
    return tokens


def _best(logits: Float[Tensor, "batch seq vocab"], mask_id: int) -> tuple[Float[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Probability and id of the most likely token; the mask id is excluded."""
    logits = logits.float().clone()
    logits[..., mask_id] = -torch.inf
    probability, best = logits.softmax(-1).max(-1)
    return probability, best
