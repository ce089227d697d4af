"""How the backbone's states enter the slot refiner: as they are, or through a LayerNorm as in the founding design."""

from torch import nn


class Identity(nn.Identity):
    """States enter as they are: with a silent update the refined states then *are* the backbone's, bit for bit.

    Args:
        dim: width of the states.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def unit(self, hidden_rms: float) -> float:
        """Give the size of the states that come out: still that of the backbone's."""
        return hidden_rms


class Normed(nn.LayerNorm):
    """States enter through a LayerNorm of the refiner's own: of rms 1, and no longer the backbone's.

    Args:
        dim: width of the states.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def unit(self, hidden_rms: float) -> float:
        """Give the size of the states that come out: 1, whatever the backbone's."""
        return 1.0


Entry = Identity | Normed
