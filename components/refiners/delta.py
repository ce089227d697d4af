"""How the refiner bounds the update that its delta network proposes."""

import torch
from jaxtyping import Float
from torch import Tensor


def rms_scaled(delta: Float[Tensor, "batch seq dim"], hidden_rms: Float[Tensor, ""]) -> Float[Tensor, "batch seq dim"]:
    """delta * rms of the backbone's hidden states: an update of O(1) is as large as the states it refines.

    Measured against ``clamped`` on 4x4 puzzles: .938 against .748 exact (one seed).
    """
    return delta * hidden_rms


def clamped(
    delta: Float[Tensor, "batch seq dim"], hidden_rms: Float[Tensor, ""], scale: float = 0.1, limit: float = 0.5
) -> Float[Tensor, "batch seq dim"]:
    """clamp(scale * tanh(delta), -limit, limit): the founding design, blind to the states' size. At 0.1 the clamp never acts.

    >>> clamped(torch.full((1, 1, 1), 9.0), torch.ones(())).item() <= 0.1
    True
    """
    return (torch.tanh(delta) * scale).clamp(-limit, limit)
