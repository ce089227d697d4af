"""Puzzles from files: a line holds a grid with empty cells and its solution. Every puzzle is solved anew before it is believed.

A puzzle with several solutions makes right answers wrong, and a model that cannot know which one is meant looks worse than it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.corpora.sudoku import BOXES, Rules
from pipeline.errors import ConfigError, DataError
from pipeline.files import absence, sha256
from pipeline.progress import Progress
from pipeline.text.fields import checked
from pipeline.text.jsonl import RAW_VARIABLE, held_out, raw_folder
from pipeline.text.prompts import EMPTY
from pipeline.text.tables import rows

Grid = tuple[int | None, ...]


@dataclass(frozen=True)
class PuzzleFiles:
    """Puzzles of ``size`` x ``size`` cells from CSV, JSON lines or Parquet. Token ids: digit 1..size -> 0..size-1, mask = size.

    Args:
        train: training file, relative to the raw folder.
        test: test file.
        download: command that fetches the files, shown when they are missing.
        size: 4, 6 or 9.
        puzzle: field of the puzzle: digits, and ".", "0" or "_" for empty cells; "/" and white space say nothing.
        solution: field of its solution.
        validation: fraction of training puzzles kept for validation, by a hash of the solution: no grid is in both.
        several: what to do with a puzzle that has several solutions: "refuse" names the line, "drop" leaves it out, "accept" takes
            any solution that keeps the rules as right (exact). How many there are is told.
    """

    causal: ClassVar[bool] = False
    is_text: ClassVar[bool] = False

    train: str
    test: str
    download: str
    size: int = 9
    puzzle: str = "puzzle"
    solution: str = "solution"
    validation: float = 0.05
    several: Literal["refuse", "drop", "accept"] = "refuse"

    def shape(self) -> tuple[int, int]:
        """Token ids (digits and the mask), and cells of a puzzle.

        Raises:
            ConfigError: a size without known boxes, or no fraction.
        """
        if self.size not in BOXES:
            raise ConfigError(f"PuzzleFiles.size must be one of {', '.join(map(str, BOXES))}, got {self.size}")
        if not 0 < self.validation < 1:
            raise ConfigError(f"PuzzleFiles.validation must lie between 0 and 1, got {self.validation}")
        return self.size + 1, self.size**2

    def raw_files(self) -> tuple[str, str]:
        """Name the files that are read, relative to the raw folder."""
        return self.train, self.test

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]:
        """Read every puzzle, solve it, and split the training file.

        Raises:
            DataError: a file is missing, a line is no puzzle with its solution, or has several and they are refused.
        """
        ids, cells = self.shape()
        train, test = (self._read(raw_folder() / name) for name in self.raw_files())
        parts: dict[str, list[tuple[Grid, Grid]]] = {"train": [], "validation": [], "test": test}
        for puzzle, solution in train:
            parts["validation" if held_out(str(solution), self.validation) else "train"].append((puzzle, solution))
        groups: dict[Grid, int] = {}
        splits = {name: _split(part, groups, cells) for name, part in parts.items()}
        kind = "sudoku_any" if self.several == "accept" else "sudoku"
        vocabulary = Vocabulary(size=ids, mask_id=self.size, pad_id=self.size, sequence=cells, rendering=kind)
        return vocabulary, splits, {name: sha256(raw_folder() / name) for name in self.raw_files()}

    def _read(self, path: Path) -> list[tuple[Grid, Grid]]:
        if not path.is_file():
            raise DataError(
                f"{path} {absence(path)}; fetch it with: {self.download} (or set {RAW_VARIABLE} to the folder that holds it)"
            )
        pairs: list[tuple[Grid, Grid]] = []
        ambiguous: list[str] = []
        read, rules = 0, Rules(self.size)
        with Progress(f"prepare {path.name}", 0, "puzzle") as bar:
            for origin, row in rows(path):
                read += 1
                texts = checked(row, origin, (self.puzzle, self.solution), ())
                puzzle, solution = (self._grid(texts[name], origin, name) for name in (self.puzzle, self.solution))
                if several := self._check(rules, puzzle, solution, origin):
                    ambiguous.append(origin)
                if not several or self.several == "accept":
                    pairs.append((puzzle, solution))
                bar.advance()
        if ambiguous:
            message = f"{len(ambiguous)} of {read} puzzles of {path} have more than one solution (the first: {ambiguous[0]})"
            if self.several == "refuse":
                raise DataError(f"{message}; set PuzzleFiles.several = 'drop', or 'accept' to take any of them as right")
            print(f"prepare: {message}: {'left out' if self.several == 'drop' else 'any of them is right'}")
        return pairs

    def _grid(self, text: str, origin: str, field: str) -> Grid:
        """Read digits and empty cells."""
        cells = "".join(text.replace("/", " ").split())
        digits = "123456789"[: self.size]
        if len(cells) != self.size**2 or not set(cells) <= {*digits, *EMPTY}:
            expected = f"{self.size**2} cells, each one of {digits} or '.' where it is empty"
            raise DataError(f'{origin}: "{field}" must be {expected}; got {text[:100]!r}, {len(cells)} cells')
        return tuple(None if cell in EMPTY else int(cell) - 1 for cell in cells)

    def _check(self, rules: Rules, puzzle: Grid, solution: Grid, origin: str) -> bool:
        """Tell whether a puzzle has several solutions, one of which is the given one.

        Raises:
            DataError: it is not, or nothing is to be solved.
        """
        if None not in puzzle:
            raise DataError(f'{origin}: "{self.puzzle}" has no empty cell: there is nothing to solve')
        if any(clue is not None and clue != cell for clue, cell in zip(puzzle, solution, strict=True)):
            raise DataError(f'{origin}: "{self.solution}" does not hold the clues of "{self.puzzle}"')
        if not rules.is_solved(solution):
            raise DataError(f'{origin}: "{self.solution}" breaks the rules: a digit is missing or twice in a row, column or box')
        return len(list(rules.solutions(list(puzzle), limit=2))) > 1


def _split(part: Sequence[tuple[Grid, Grid]], groups: dict[Grid, int], cells: int) -> Split:
    """A row a puzzle; puzzles of one grid share a group."""
    tokens = torch.tensor([solution for _, solution in part], dtype=torch.int32).reshape(-1, cells)
    response = torch.tensor([[cell is None for cell in puzzle] for puzzle, _ in part], dtype=torch.bool).reshape(-1, cells)
    group = torch.tensor([groups.setdefault(solution, len(groups)) for _, solution in part], dtype=torch.int64)
    return Split(tokens=tokens, response=response, group=group)
