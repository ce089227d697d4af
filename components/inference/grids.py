"""Whether a filled grid keeps the rules of its puzzle, whichever solution it is."""

from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor


def keeps_rules(grids: Int[Tensor, "batch cells"], height: int, width: int) -> Bool[Tensor, "batch"]:
    """Tell which grids hold every digit once in each row, column and box.

    Args:
        grids: digits 0 .. size - 1 row by row; size = height x width.
        height: rows of a box.
        width: columns of a box.
    """
    size = height * width
    units = (
        rearrange(grids, "n (row column) -> n row column", row=size),
        rearrange(grids, "n (row column) -> n column row", row=size),
        rearrange(grids, "n (top y left x) -> n (top left) (y x)", top=width, y=height, left=height, x=width),
    )
    digits = grids.new_tensor(range(size))
    right = [(unit.sort(-1).values == digits).all(-1).all(-1) for unit in units]
    return right[0] & right[1] & right[2]
