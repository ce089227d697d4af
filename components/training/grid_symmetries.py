"""Symmetries of grid puzzles: another puzzle of as many clues and solutions, for training on more puzzles than there are.

Digits are relabelled; bands (rows of boxes), stacks (columns of boxes), the rows of each band and the columns of each stack are
permuted; where boxes are square the grid may be transposed.
"""

from collections.abc import Callable
from math import isqrt

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

Augmentation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # tokens, response, noise -> tokens, response


def grid_symmetries(
    tokens: Int[Tensor, "batch cells"], response: Bool[Tensor, "batch cells"], noise: Float[Tensor, "batch noise"]
) -> tuple[Int[Tensor, "batch cells"], Bool[Tensor, "batch cells"]]:
    """Map each puzzle to one that any symmetry of the rules makes of it, all equally likely.

    Args:
        tokens: solved grids, digits 0 .. size - 1 row by row.
        response: True where a cell is to be found.
        noise: uniform [0, 1), ``cells + 1`` columns.

    Raises:
        ValueError: the cells are no grid of boxes.
    """
    size, height, width = boxes(tokens.shape[1])
    parts = [size, size, size, size // height, size // width, 1]
    digits, rows, columns, bands, stacks, turn = noise[:, : sum(parts)].split(parts, 1)
    row, column = _order(bands, rows), _order(stacks, columns)
    place = rearrange(row, "batch row -> batch row 1") * size + rearrange(column, "batch column -> batch 1 column")
    if height == width:
        place = torch.where(rearrange(turn < 0.5, "batch 1 -> batch 1 1"), place.mT, place)
    place, names = rearrange(place, "batch row column -> batch (row column)"), digits.argsort(dim=1, stable=True)
    return names.gather(1, tokens.gather(1, place).long()).to(tokens.dtype), response.gather(1, place)


def boxes(cells: int) -> tuple[int, int, int]:
    """Digits of a grid, and height and width of its boxes, as near to squares as they can be, not higher than wide.

    Raises:
        ValueError: no grid has so many cells.

    >>> boxes(16), boxes(36), boxes(81)
    ((4, 2, 2), (6, 2, 3), (9, 3, 3))
    """
    size = isqrt(cells)
    height = max((h for h in range(1, isqrt(size) + 1) if size % h == 0), default=1)
    if size**2 != cells or height == 1:
        raise ValueError(f"expected a grid of size x size cells with boxes, such as 16, 36 or 81 cells, got {cells}")
    return size, height, size // height


def _order(groups: Float[Tensor, "batch groups"], lines: Float[Tensor, "batch lines"]) -> Int[Tensor, "batch lines"]:
    """Which line comes to each place: groups in a random order, in each its lines in another."""
    n = groups.shape[1]
    first, within = groups.argsort(dim=1, stable=True), rearrange(lines, "batch (group line) -> batch group line", group=n)
    inside = within.argsort(dim=2, stable=True)
    width = inside.shape[2]
    chosen = inside.gather(1, rearrange(first, "batch group -> batch group 1").expand(-1, -1, width))
    return rearrange(rearrange(first, "batch group -> batch group 1") * width + chosen, "batch group line -> batch (group line)")
