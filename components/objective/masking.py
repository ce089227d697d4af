"""The forward process of masked diffusion: which response tokens are hidden, and what each one weighs in the loss.

Both processes are LLaDA's supervised fine-tuning objective: the prompt is never masked, position i predicts token i (no
causal shift), and the loss of a batch is ``sum(weights * cross_entropy) / sequences``. They differ in variance only.
Source: Nie et al., "Large Language Diffusion Models" (LLaDA, 2025), eq. 5 and algorithm 2; the exact-count form is its
eq. 6 (used there for likelihoods).

The noise is an argument (``components.noise.uniform`` or ``torch.rand(..., generator=g)``): nothing here draws by itself.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.ranges import PositiveInt, PositiveShare, Share


def exact_count(
    response: Bool[Tensor, "batch seq"], noise: Float[Tensor, "batch noise"]
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Draw l ~ U{1..L} and mask exactly l of the L response tokens; weight 1/l each.

    Same expectation as ``bernoulli`` at far lower variance (4-token answer, 128 draws: sd 0.14 against 1.78), hence the form
    for cached draws, which are few. Per answer the loss is the mean over its masked tokens: L/l * 1/L.

    Args:
        response: True where a token may be masked.
        noise: uniform [0, 1), one column for l and one per position (``seq + 1`` columns).

    Returns:
        (masked, weights).
    """
    length = response.sum(1, keepdim=True)
    count = (noise[:, :1] * length).floor().long() + 1
    return _lowest(response, noise[:, 1:], torch.minimum(count, length))


def often_full(
    response: Bool[Tensor, "batch seq"], noise: Float[Tensor, "batch noise"], full: Share = 0.5
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Mask the whole answer with probability ``full``, else as ``exact_count`` does.

    Not LLaDA's objective: it favours what one parallel decode of a whole answer needs. A control must train on the same masks.

    Args:
        response: True where a token may be masked.
        noise: uniform [0, 1), one column for l and one per position (``seq + 1`` columns).
        full: probability, 0 to 1.
    """
    length = response.sum(1, keepdim=True)
    share = (noise[:, :1] - full) / max(1 - full, 1e-6)  # uniform [0, 1) where it is not negative
    count = torch.where(share < 0, length, (share * length).floor().long() + 1)
    return _lowest(response, noise[:, 1:], torch.minimum(count, length))


def fixed_ratio(
    response: Bool[Tensor, "batch seq"], noise: Float[Tensor, "batch noise"], ratio: Share
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Mask ``ratio`` of each answer, at least one token: the evaluation's masks. Takes the noise of ``exact_count``.

    Masks are nested: with the same noise, what a smaller ratio masks, a larger one masks too.
    """
    length = response.sum(1, keepdim=True)
    count = (length * ratio).round().long().clamp_min(1)
    return _lowest(response, noise[:, 1:], torch.minimum(count, length))


def chunks(
    response: Bool[Tensor, "batch seq"], noise: Float[Tensor, "batch noise"], size: PositiveInt = 16
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """``exact_count`` over chunks: draw c ~ U{1..C}, mask exactly c of the answer's C chunks, whole; weight 1/masked tokens each.

    A chunk of reasoning then has to be found from the others, not from its own tokens.

    Args:
        response: True where a token may be masked; a chunk is ``size`` of them in a row, the last one what is left.
        noise: uniform [0, 1), one column for c and one per position (``seq + 1`` columns).
        size: tokens of a chunk, at least 1.

    Raises:
        ValueError: chunks of no token.
    """
    if size < 1:
        raise ValueError(f"a chunk needs at least 1 token, got {size}")
    place = response.cumsum(1) - 1
    first = response & (place % size == 0)
    number = torch.where(response, place // size + 1, 0)  # of a token's chunk; 0 = none
    chosen, _ = exact_count(first, noise)
    numbers_chosen = torch.where(chosen, number, -1)
    masked = (number[:, :, None] == numbers_chosen[:, None, :]).any(-1)
    return masked, masked / masked.sum(1, keepdim=True).clamp_min(1).float()


def whole(
    response: Bool[Tensor, "batch seq"], noise: Float[Tensor, "batch noise"]
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """The whole response, weight 1/L each: what a causal model learns from, in one draw, for nothing is hidden from it."""
    return fixed_ratio(response, noise, 1.0)


def bernoulli(
    response: Bool[Tensor, "batch seq"], noise: Float[Tensor, "batch noise"], eps: PositiveShare = 1e-3
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Draw t ~ U(0, 1), mask each response token with probability p = (1 - eps) t + eps; weight 1 / (p L) each.

    Args:
        response: True where a token may be masked.
        noise: uniform [0, 1), one column for t and one per position (``seq + 1`` columns).
        eps: lowest masking probability; bounds the weight.
    """
    p = (1 - eps) * noise[:, :1] + eps
    masked = response & (noise[:, 1:] < p)
    length = response.sum(1, keepdim=True).clamp_min(1)
    return masked, masked * (1 / (p * length)).float()


def _lowest(
    response: Bool[Tensor, "batch seq"], noise: Float[Tensor, "batch seq"], count: Int[Tensor, "batch 1"]
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Mask the ``count`` response positions with the lowest noise; weight 1/count."""
    rank = noise.masked_fill(~response, 2.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    masked = response & (rank < count)
    return masked, masked / count.clamp_min(1).float()
