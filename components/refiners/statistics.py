"""What refiners measure of themselves: means over the positions that hold a token, still on the device."""

from jaxtyping import Bool, Float
from torch import Tensor


def mean(x: Float[Tensor, "batch seq width"], attention: Bool[Tensor, "batch seq"] | None) -> Float[Tensor, ""]:
    """Average over channels and unpadded positions; no host sync."""
    if attention is None:
        return x.float().mean()
    weight = attention[..., None].float()
    return (x.float() * weight).sum() / (weight.sum() * x.shape[-1])


def mean_square(x: Float[Tensor, "batch seq width"], attention: Bool[Tensor, "batch seq"] | None) -> Float[Tensor, ""]:
    """Average the squares over channels and unpadded positions, without gradient."""
    return mean(x.detach().float().square(), attention)
