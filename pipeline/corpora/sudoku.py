"""Generated puzzles with exactly one solution: the embedded corpus.

Clues are the prompt, the other cells the response. Train, validation and test are cut by *solution grid*, so no test solution
was ever a training target. (4x4 has only 288 grids, all relabellings and symmetries of two: what is tested is reasoning over
unseen grids, not over unseen structure.)
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import comb
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

from components.ranges import InnerShare, NonNegativeInt, PositiveInt
from pipeline.corpora import further_tests
from pipeline.corpora.ambiguous import ambiguous, joined
from pipeline.corpora.further_tests import PuzzleSource
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.corpora.solver import Search, Solver
from pipeline.errors import ConfigError
from pipeline.progress import Progress

Grid = TypeVar("Grid")
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
ALL_GRIDS = {4: 288, 6: 28_200_960, 9: 6_670_903_752_021_072_936_960}
FEWEST_CLUES = {4: 4, 6: 8, 9: 17}  # with fewer no puzzle has one solution
ATTEMPTS = 20  # for each puzzle that is wanted
HOPELESS = 200  # attempts for each puzzle that they gave


@dataclass(frozen=True)
class Sudoku:
    """Puzzles of ``size`` x ``size`` cells. Token ids: digit 1..size -> 0..size-1, mask = size.

    Args:
        size: 4, 6 or 9.
        grids: solution grids drawn at most (4x4: all 288 are used).
        train: training puzzles.
        clues: fewest and most clues of a training or validation puzzle.
        validation: validation puzzles.
        test: puzzles of each test split.
        test_clues: one test split ``test_<n>`` for each number of clues.
        held_out: fraction of grids kept for test, and half as many for validation.
        ambiguous: training puzzles beside those of one solution that have two to five, of which the first in the order of digits is
            learned (``pipeline.corpora.ambiguous``).
        further: more test splits, from files, by name: {"d1_4x4": @puzzle_files.PuzzleFile()}; of each also ``NAME_unseen``.
        guesses: fewest and most guesses that the reference solver takes for a puzzle of any split; (0, 0) = singles alone solve it.
            What it takes is stored as each puzzle's difficulty. None = any puzzle, and none is stored.
    """

    size: int = 4
    grids: PositiveInt = 288
    train: PositiveInt = 12000
    clues: tuple[PositiveInt, PositiveInt] = (4, 8)
    validation: PositiveInt = 512
    test: PositiveInt = 600
    test_clues: tuple[PositiveInt, ...] = (7, 5)
    held_out: InnerShare = 1 / 6
    ambiguous: NonNegativeInt = 0
    further: Mapping[str, PuzzleSource] = field(default_factory=dict)
    guesses: tuple[NonNegativeInt, NonNegativeInt] | None = None
    causal: ClassVar[bool] = False
    is_text: ClassVar[bool] = False

    def shape(self) -> tuple[int, int]:
        """Token ids (digits and the mask), and cells of a puzzle.

        Raises:
            ConfigError: a size without known boxes, or puzzles that do not exist.

        Source: fewest clues: McGuire, Tugemann and Civario, "There is no 16-clue Sudoku" (2014), for 9x9.
        """
        if self.size not in BOXES:
            raise ConfigError(f"Sudoku.size must be one of {', '.join(map(str, BOXES))}, got {self.size}")
        cells, fewest = self.size**2, FEWEST_CLUES[self.size]
        for name, (low, high) in (("clues", self.clues), *(("test_clues", (n, n)) for n in self.test_clues)):
            if not fewest <= low <= high < cells:
                raise ConfigError(
                    f"Sudoku.{name} must lie within {fewest} and {cells - 1} at size {self.size}, the lower number first, "
                    f"got {low}..{high}; with fewer clues no puzzle has one solution"
                )
        if not 0 < self.held_out < 1:
            raise ConfigError(f"Sudoku.held_out must lie between 0 and 1, got {self.held_out}")
        if self.guesses is not None and not 0 <= self.guesses[0] <= self.guesses[1]:
            raise ConfigError(f"Sudoku.guesses must be the fewest and the most, the lower number first, got {self.guesses}")
        if self.grids > ALL_GRIDS[self.size] and self.size != 4:
            raise ConfigError(f"Sudoku.grids is {self.grids}, and there are {ALL_GRIDS[self.size]} at size {self.size}")
        grids = min(self.grids, ALL_GRIDS[self.size])
        for name, (part, n, (low, high)) in self._parts(range(grids)).items():
            exist = len(part) * sum(comb(cells, clues) for clues in range(low, high + 1))
            if not 1 <= n <= exist:
                raise ConfigError(
                    f"{n} different {name} puzzles with {low}..{high} clues on {len(part)} grids are not to be had: expected 1 to "
                    f"{exist}; ask for fewer puzzles, other clues or more grids"
                )
        return self.size + 1, cells

    def _parts(self, grids: Sequence[Grid]) -> dict[str, tuple[Sequence[Grid], int, tuple[int, int]]]:
        """The grids, number of puzzles, and fewest and most clues of each split."""
        test = round(len(grids) * self.held_out)
        validation = max(1, test // 2)
        return {
            "train": (grids[test + validation :], self.train, self.clues),
            "validation": (grids[test : test + validation], self.validation, self.clues),
            **{f"test_{n}": (grids[:test], self.test, (n, n)) for n in self.test_clues},
        }

    def raw_files(self) -> tuple[str, ...]:
        """Name the files that are read: those of further tests alone, all other puzzles are generated."""
        return tuple(name for file in self.further.values() for name in file.raw_files())

    def split_names(self) -> tuple[str, ...]:
        """Name the splits that are prepared."""
        own = "train", "validation", *(f"test_{clues}" for clues in self.test_clues)
        return *own, *further_tests.split_names(self.further, own)

    def training_examples(self) -> int:
        """Say how many training examples are prepared."""
        return self.train + self.ambiguous

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]:
        """Generate the puzzles of every split. Same seed, same puzzles; nothing but further tests is read from disk.

        Raises:
            ConfigError: a size without known boxes, or more puzzles asked for than could be found.
        """
        ids, cells = self.shape()
        rng = random.Random(seed)
        rules = Rules(self.size)
        grids = rules.grids(rng, self.grids)
        parts = self._parts(grids)
        numbers = {grid: i for i, grid in enumerate(grids)}
        splits = {name: self._split(name, rules, random.Random(f"{seed}/{name}"), numbers, *part) for name, part in parts.items()}
        if self.ambiguous:
            more = ambiguous(rules, random.Random(f"{seed}/ambiguous"), numbers, parts["train"][0], self.ambiguous)
            splits["train"] = joined(splits["train"], more)
        vocabulary = Vocabulary(size=ids, mask_id=self.size, pad_id=self.size, sequence=cells, rendering="sudoku")
        splits |= further_tests.further_splits(self.further, self.size, seed, splits)
        return vocabulary, splits, {name: digest for file in self.further.values() for name, digest in file.source().items()}

    def _split(
        self,
        name: str,
        rules: "Rules",
        rng: random.Random,
        ids: dict[tuple[int, ...], int],
        grids: Sequence[tuple[int, ...]],
        n: int,
        clues: tuple[int, int],
    ) -> Split:
        """``n`` different puzzles, their grids in turn; given up where hardly any attempt finds one."""
        pairs: dict[tuple[int | None, ...], tuple[int, ...]] = {}
        steps: list[tuple[int, int]] = []
        fewest, most = self.guesses or (0, 0)
        with Progress(f"prepare {name}", n, "puzzle") as bar:
            for attempt in range(ATTEMPTS * n):
                if len(pairs) == n or len(pairs) < attempt // HOPELESS:
                    break
                grid = grids[attempt % len(grids)]
                puzzle = rules.remove_clues(grid, rng.randint(*clues), rng)
                if puzzle is None or puzzle in pairs:
                    continue
                search = Search(True, 0, 0) if self.guesses is None else rules.solver.search(puzzle)
                if fewest <= search.guesses <= most:
                    pairs[puzzle] = grid
                    steps.append((search.rounds, search.guesses))
                    bar.advance()
        if len(pairs) < n:
            raise ConfigError(
                f"found only {len(pairs)} of {n} different {name} puzzles with {clues[0]}..{clues[1]} clues "
                + (f"and {fewest}..{most} guesses " if self.guesses else "")
                + f"on {len(grids)} grids in {attempt + 1} attempts; ask for fewer puzzles or other clues"
            )
        tokens = torch.tensor(list(pairs.values()), dtype=torch.int32)
        response = torch.tensor([[cell is None for cell in puzzle] for puzzle in pairs])
        group = torch.tensor([ids[grid] for grid in pairs.values()])
        difficulty = torch.tensor(steps, dtype=torch.int32) if self.guesses else None
        return Split(tokens=tokens, response=response, group=group, difficulty=difficulty)


class Rules:
    """Rows, columns and boxes of one puzzle size: all solutions of a puzzle, and puzzles with one."""

    def __init__(self, size: int) -> None:
        rows, columns = BOXES[size]
        self.size = size
        self.solver = Solver(rows, columns)
        self.full = (1 << size) - 1
        self.units = [
            (i // size, size + i % size, 2 * size + (i // size // rows) * (size // columns) + i % size // columns)
            for i in range(size * size)
        ]

    def grids(self, rng: random.Random, n: int) -> list[tuple[int, ...]]:
        """Up to ``n`` different solved grids in random order; all there are if ``n`` is at least that many (4x4: 288)."""
        if self.size == 4:
            solutions = list(self.solutions([None] * 16, limit=288))
            rng.shuffle(solutions)
            return solutions[:n]
        unique: dict[tuple[int, ...], None] = {}
        with Progress("prepare grids", n, "grid") as bar:
            while len(unique) < n:
                unique[next(self.solutions([None] * self.size**2, limit=1, rng=rng))] = None
                bar.advance(len(unique) - bar.done)
        return list(unique)

    def is_solved(self, grid: tuple[int | None, ...]) -> bool:
        """Tell whether a grid is full and holds every digit once in each row, column and box."""
        seen = [0] * (3 * self.size)
        for i, value in enumerate(grid):
            for unit in self.units[i]:
                seen[unit] |= 0 if value is None else 1 << value
        return all(unit == self.full for unit in seen)

    def remove_clues(self, grid: tuple[int, ...], clues: int, rng: random.Random) -> tuple[int | None, ...] | None:
        """Take clues away in random order while the solution stays the only one; None if ``clues`` is not reached.

        A clue may go unless some solution has another value in its cell: far cheaper to refute than to count solutions.
        """
        puzzle: list[int | None] = list(grid)
        left = len(grid)
        for cell in rng.sample(range(len(grid)), len(grid)):
            if left == clues:
                break
            puzzle[cell] = None
            if self.solver.search(puzzle, without=(cell, grid[cell])).solved:
                puzzle[cell] = grid[cell]
            else:
                left -= 1
        return tuple(puzzle) if left == clues else None

    def solutions(
        self,
        puzzle: list[int | None],
        limit: int,
        rng: random.Random | None = None,
    ) -> Iterator[tuple[int, ...]]:
        """Yield up to ``limit`` solutions, most constrained cell first.

        Args:
            puzzle: values, None where empty.
            limit: solutions at most.
            rng: try values in random order.
        """
        free = [self.full] * (3 * self.size)
        cells = list(puzzle)
        for i, value in enumerate(cells):
            if value is not None:
                for unit in self.units[i]:
                    free[unit] &= ~(1 << value)
        empty = [i for i, value in enumerate(cells) if value is None]
        if rng is not None:
            rng.shuffle(empty)
        yield from islice(self._search(cells, empty, free, rng), limit)

    def _search(
        self, cells: list[int | None], empty: list[int], free: list[int], rng: random.Random | None
    ) -> Iterator[tuple[int, ...]]:
        if not empty:
            yield tuple(cells)  # type: ignore[arg-type]  # nothing is empty
            return
        best = min(empty, key=lambda i: self._candidates(i, free).bit_count())
        rest = [i for i in empty if i != best]
        values = [v for v in range(self.size) if self._candidates(best, free) >> v & 1]
        if rng is not None:
            rng.shuffle(values)
        for value in values:
            yield from self._with(best, value, cells, rest, free, rng)
        cells[best] = None

    def _with(
        self, cell: int, value: int, cells: list[int | None], empty: list[int], free: list[int], rng: random.Random | None
    ) -> Iterator[tuple[int, ...]]:
        """Solutions that have ``value`` in ``cell``."""
        cells[cell] = value
        for unit in self.units[cell]:
            free[unit] ^= 1 << value
        yield from self._search(cells, empty, free, rng)
        for unit in self.units[cell]:
            free[unit] ^= 1 << value

    def _candidates(self, cell: int, free: list[int]) -> int:
        row, column, box = self.units[cell]
        return free[row] & free[column] & free[box]
