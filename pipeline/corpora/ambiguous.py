"""Training puzzles of several solutions, with the one to learn from: the first in the order of digits.

A model that has seen puzzles of one solution alone says of each cell what is likely there, and mixes two solutions into none. Which
of them is meant it can only learn where a rule says it, the same in all puzzles.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from pipeline.corpora.prepared import Split
from pipeline.errors import ConfigError
from pipeline.progress import Progress

Grid = tuple[int, ...]
MOST = 5  # solutions of a puzzle
ATTEMPTS = 200  # for each puzzle that is wanted


class Solver(Protocol):
    """Interface of what solves puzzles: ``pipeline.corpora.sudoku.Rules``."""

    def solutions(self, puzzle: list[int | None], limit: int) -> Iterator[Grid]:
        """Yield up to ``limit`` solutions."""


def ambiguous(solver: Solver, rng: random.Random, groups: Mapping[Grid, int], grids: Sequence[Grid], n: int) -> Split:
    """Draw ``n`` different puzzles of two to five solutions, the first of which is one of the grids.

    Args:
        solver: of the puzzles' size.
        rng: draws the grid, the number of its clues (a quarter to five eighths of the cells), and which they are.
        groups: number of each grid.
        grids: that may be learned from.
        n: puzzles.

    Raises:
        ConfigError: there are not so many, or they are too rare.
    """
    allowed, pairs, cells = set(grids), dict[tuple[int | None, ...], Grid](), len(grids[0])
    with Progress("prepare ambiguous puzzles", n, "puzzle") as bar:
        for _ in range(ATTEMPTS * n):
            if len(pairs) == n:
                break
            grid = rng.choice(grids)
            clues = set(rng.sample(range(cells), rng.randint(cells // 4, cells * 5 // 8)))
            puzzle = tuple(cell if i in clues else None for i, cell in enumerate(grid))
            solutions = [] if puzzle in pairs else sorted(solver.solutions(list(puzzle), limit=MOST + 1))
            if 2 <= len(solutions) <= MOST and solutions[0] in allowed:
                pairs[puzzle] = solutions[0]
                bar.advance()
    if len(pairs) < n:
        raise ConfigError(
            f"found only {len(pairs)} of {n} different puzzles of two to {MOST} solutions; ask for fewer: Sudoku.ambiguous"
        )
    return Split(
        tokens=torch.tensor(list(pairs.values()), dtype=torch.int32),
        response=torch.tensor([[cell is None for cell in puzzle] for puzzle in pairs]),
        group=torch.tensor([groups[grid] for grid in pairs.values()]),
    )


def joined(first: Split, second: Split) -> Split:
    """Put the rows of one split behind those of another; of what only one of them states nothing is left."""
    pairs = {name: (value, getattr(second, name)) for name, value in vars(first).items()}
    return Split(**{name: torch.cat(pair) for name, pair in pairs.items() if pair[0] is not None and pair[1] is not None})
