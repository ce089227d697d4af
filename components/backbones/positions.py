"""How the positions that a model learns begin: each with a vector of its own, or as the places of a grid.

To bind one: ``tiny_lm.TinyLM.positions = @positions.Grid()``. Only the first values differ, so a model's file does not name it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.ranges import PositiveInt


@dataclass(frozen=True)
class Apart:
    """Independent vectors N(0, std^2): what is near or in line has to be learned."""

    def check(self, seq: int) -> None:
        """Accept any number of positions."""

    def __call__(self, positions: Float[Tensor, "seq dim"], std: float, generator: torch.Generator) -> None:
        nn.init.normal_(positions, std=std, generator=generator)


@dataclass(frozen=True)
class Grid:
    """The sum of three vectors, which all cells of a row, of a column and of a box share; N(0, std^2) as well.

    Which cells share a digit's rule then is a matter of few vectors, not of every pair of cells.

    Args:
        rows: of a box; as many boxes lie side by side.
        columns: of a box; as many boxes lie one upon the other.
    """

    rows: PositiveInt = 3
    columns: PositiveInt = 3

    def check(self, seq: int) -> None:
        """Refuse another number of positions than a grid of such boxes has cells.

        Raises:
            ValueError: it is not (rows * columns)^2.
        """
        cells = (self.rows * self.columns) ** 2
        if seq != cells:
            raise ValueError(f"a grid of boxes of {self.rows} x {self.columns} has {cells} cells, got sequences of {seq}")

    def __call__(self, positions: Float[Tensor, "seq dim"], std: float, generator: torch.Generator) -> None:
        """Fill the positions of a square grid, row by row."""
        size = self.rows * self.columns
        cells = torch.arange(size * size)
        y, x = cells // size, cells % size
        units = torch.stack([y, size + x, 2 * size + y // self.rows * self.rows + x // self.columns])
        vectors = torch.empty(3 * size, positions.shape[1])
        nn.init.normal_(vectors, std=std / 3**0.5, generator=generator)
        with torch.no_grad():
            positions.copy_(vectors[units].sum(0))


Positions = Apart | Grid
