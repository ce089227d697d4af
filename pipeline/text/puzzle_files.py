"""Puzzles from files: a corpus of them, and further test splits of a generated one. Every puzzle is solved before it is believed.

A puzzle with several solutions makes right answers wrong: none is learned from, and a test that holds some is judged both ways.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from random import Random
from typing import ClassVar, Literal

import torch
from torch import Tensor

from components.ranges import InnerShare, PositiveInt
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.corpora.sudoku import BOXES, Rules
from pipeline.errors import ConfigError, DataError
from pipeline.files import absence, sha256
from pipeline.progress import Progress, watched
from pipeline.text.jsonl import held_out
from pipeline.text.puzzle_lines import PuzzleLine, puzzle_lines, solve
from pipeline.text.raw_files import RAW_VARIABLE, raw_folder

Solutions = Literal["counted", "unchecked"]


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Puzzle of a file with the solution that counts as listed.

    Attributes:
        origin: where it stands (file:line).
        clues: digits row by row, "." where a cell is empty.
        solution: digits row by row.
        several: whether others solve it too.
    """

    origin: str
    clues: str
    solution: str
    several: bool


@dataclass(frozen=True)
class PuzzleFile:
    """A file of puzzles with their solutions, in CSV, plain lines, JSON lines or Parquet (``pipeline.text.puzzle_lines``).

    Args:
        path: relative to the raw folder.
        download: command that fetches the file, shown when it is missing.
        puzzle: column of the puzzle: digits, and ".", "0" or "_" for empty cells; "/" and white space say nothing. None = the one
            of a usual name (puzzle, quizzes, question), without a header the first that holds a grid.
        solution: column of its solution; None = likewise (solution, solutions, answer); where there is none the puzzle is solved.
        limit: puzzles that are drawn from the file, by the seed, in its order; None = all.
        solutions: "counted" looks for a second solution of each puzzle; "unchecked" believes a file that lists solutions that
            there are no others, which saves hours on hundreds of thousands of hard puzzles.
    """

    path: str
    download: str
    puzzle: str | None = None
    solution: str | None = None
    limit: PositiveInt | None = None
    solutions: Solutions = "counted"

    def raw_files(self) -> tuple[str, ...]:
        """Name the file that is read, relative to the raw folder."""
        return (self.path,)

    def source(self) -> dict[str, str]:
        """Hash the file, by its name."""
        return {self.path: sha256(raw_folder() / self.path)}

    def lines(self, size: int, seed: int) -> list[PuzzleLine]:
        """Read the lines that are drawn, without solving anything.

        Raises:
            DataError: the file is missing, or a line is no puzzle (file and line are named).
        """
        path = raw_folder() / self.path
        if not path.is_file():
            raise DataError(
                f"{path} {absence(path)}; fetch it with: {self.download} (or set {RAW_VARIABLE} to the folder that holds it)"
            )
        read = puzzle_lines(path, size, self.puzzle, self.solution)
        if self.limit is not None:
            n = sum(1 for _ in puzzle_lines(path, size, self.puzzle, self.solution))
            chosen = set(Random(f"{seed}/{self.path}/{self.limit}").sample(range(n), min(n, self.limit)))
            read = compress(read, (number in chosen for number in range(n)))
        if not (lines := list(watched(read, f"prepare {path.name}", 0, "puzzle"))):
            raise DataError(f"{path} holds no puzzles; expected one of {size**2} cells a line")
        return lines

    def read(self, size: int, seed: int) -> list[Puzzle]:
        """Read and solve the puzzles that are drawn; tells how many have several solutions, or stand there more than once.

        Raises:
            DataError: as ``lines`` does, and where a puzzle or its solution breaks the rules.
        """
        rules, limit, puzzles = Rules(size), 2 if self.solutions == "counted" else 1, list[Puzzle]()
        lines = self.lines(size, seed)
        with Progress(f"prepare solves {self.path}", len(lines), "puzzle") as bar:
            for line in lines:
                puzzles.append(Puzzle(line.origin, line.clues, *solve(rules, line, limit)))
                bar.advance()
        tell(puzzles, [puzzle for puzzle in puzzles if puzzle.several], "have more than one solution")
        times = Counter(puzzle.clues for puzzle in puzzles)
        tell(puzzles, [puzzle for puzzle in puzzles if times[puzzle.clues] > 1], "stand there more than once")
        return puzzles

    def clues(self, size: int, seed: int) -> Tensor:
        """Count the clues of each puzzle that is drawn, which takes no solving."""
        return torch.tensor([size**2 - line.clues.count(".") for line in self.lines(size, seed)])

    def examples(self, size: int, seed: int) -> Split:
        """Read and solve the puzzles, see ``read``."""
        return split_of(self.read(size, seed), {}, size)


@dataclass(frozen=True)
class PuzzleFiles:
    """Puzzles of ``size`` x ``size`` cells from files. Token ids: digit 1..size -> 0..size-1, mask = size.

    No puzzle is learned from that a test or validation split holds too, or twice; how many are left out is told.

    Args:
        train: training file, relative to the raw folder, see ``PuzzleFile``.
        test: test file, or the fraction of the training file that is held out for it.
        download: command that fetches the files, shown when they are missing.
        validation: validation file, or the fraction of training puzzles kept for it; fractions go by a hash of the solution, so
            that no grid is on both sides.
        size: 4, 6 or 9.
        puzzle: column of the puzzle; None = by its usual names.
        solution: column of its solution; None = by its usual names.
        limits: puzzles that are drawn from a file: {"train": 1000, "test": 300}; None = all.
        several: what to do with a puzzle to learn from that has several solutions: "refuse" names the line, "drop" leaves it out.
        solutions: whether others are looked for, see ``PuzzleFile``.
    """

    causal: ClassVar[bool] = False
    is_text: ClassVar[bool] = False

    train: str
    test: str | InnerShare
    download: str
    validation: str | InnerShare = 0.05
    size: int = 9
    puzzle: str | None = None
    solution: str | None = None
    limits: Mapping[str, PositiveInt] | None = None
    several: Literal["refuse", "drop"] = "refuse"
    solutions: Solutions = "counted"

    def shape(self) -> tuple[int, int]:
        """Token ids (digits and the mask), and cells of a puzzle.

        Raises:
            ConfigError: a size without known boxes, a share that is none, or a limit of a file that is not there.
        """
        if self.size not in BOXES:
            raise ConfigError(f"PuzzleFiles.size must be one of {', '.join(map(str, BOXES))}, got {self.size}")
        for name in ("validation", "test"):
            if not isinstance(share := getattr(self, name), str) and not 0 < share < 1:
                raise ConfigError(f"PuzzleFiles.{name} must be a file, or a share between 0 and 1, got {share}")
        if wrong := sorted({*(self.limits or {})} - {*self.files()}):
            raise ConfigError(f"PuzzleFiles.limits counts puzzles of the files {', '.join(self.files())}, got {wrong[0]!r}")
        return self.size + 1, self.size**2

    def files(self) -> dict[str, PuzzleFile]:
        """List the files by what they hold."""
        paths = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: PuzzleFile(path, self.download, self.puzzle, self.solution, (self.limits or {}).get(name), self.solutions)
            for name, path in paths.items()
            if isinstance(path, str)
        }

    def raw_files(self) -> tuple[str, ...]:
        """Name the files that are read, relative to the raw folder."""
        return tuple(dict.fromkeys(file.path for file in self.files().values()))

    def split_names(self) -> tuple[str, ...]:
        """Name the splits that are prepared."""
        return "train", "validation", "test"

    def training_examples(self) -> int | None:
        """Say how many training puzzles there are at most; None = as many as the file has."""
        return (self.limits or {}).get("train")

    def prepare(self, seed: int, out: object) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]:
        """Read every puzzle, solve it, and part what is learned from and what is measured.

        Raises:
            DataError: a file is missing, a line is no puzzle, or one to learn from has several solutions and they are refused.
        """
        ids, cells = self.shape()
        parts: dict[str, list[Puzzle]] = {"train": [], "validation": [], "test": []}
        files = self.files()
        for place, (name, file) in enumerate(files.items()):
            for puzzle in file.read(self.size, seed + place):  # so that others are drawn where two splits are of one file
                parts[self._part(puzzle) if name == "train" else name].append(puzzle)
        measured = {puzzle.clues for puzzle in parts["test"]}
        for name in ("train", "validation"):
            parts[name] = without(parts[name], measured, f"are in the test split too: left out of {name}")
            parts[name] = self._of_one_solution(once(parts[name]))
        learned = {puzzle.clues for puzzle in parts["train"]}
        parts["validation"] = without(parts["validation"], learned, "are in the training split too: left out of validation")
        for name, part in parts.items():
            if not part:
                raise DataError(
                    f"{raw_folder() / self.train}: no puzzles are left for split '{name}'; give PuzzleFiles more of them"
                )
        groups: dict[str, int] = {}
        splits = {name: split_of(part, groups, self.size) for name, part in parts.items()}
        vocabulary = Vocabulary(size=ids, mask_id=self.size, pad_id=self.size, sequence=cells, rendering="sudoku")
        return vocabulary, splits, {key: value for file in files.values() for key, value in file.source().items()}

    def _part(self, puzzle: Puzzle) -> str:
        """Choose the split of a puzzle of the training file."""
        if not isinstance(self.test, str) and held_out(f"test/{puzzle.solution}", self.test):
            return "test"
        return "validation" if not isinstance(self.validation, str) and held_out(puzzle.solution, self.validation) else "train"

    def _of_one_solution(self, puzzles: list[Puzzle]) -> list[Puzzle]:
        several = [puzzle for puzzle in puzzles if puzzle.several]
        if several and self.several == "refuse":
            raise DataError(
                f"{several[0].origin}: the puzzle has more than one solution, as {len(several)} of {len(puzzles)} to learn from; "
                "remove them, or set PuzzleFiles.several = 'drop'"
            )
        tell(puzzles, several, "have more than one solution: left out of what is learned from")
        return [puzzle for puzzle in puzzles if not puzzle.several]


def tell(puzzles: Sequence[Puzzle], some: Sequence[Puzzle], what: str) -> None:
    """Print how many of the puzzles are as ``what`` says, and the first; nothing where none is."""
    if some:
        print(f"prepare: {len(some)} of {len(puzzles)} puzzles {what} (the first: {some[0].origin})")


def without(puzzles: list[Puzzle], others: set[str], what: str) -> list[Puzzle]:
    """Leave out the puzzles that are among others, and tell how many."""
    tell(puzzles, [puzzle for puzzle in puzzles if puzzle.clues in others], what)
    return [puzzle for puzzle in puzzles if puzzle.clues not in others]


def once(puzzles: list[Puzzle]) -> list[Puzzle]:
    """Leave out what stands there already, and tell how many."""
    first = {puzzle.clues: puzzle for puzzle in reversed(puzzles)}
    again = [puzzle for puzzle in puzzles if first[puzzle.clues] is not puzzle]
    tell(puzzles, again, "stand there already: left out of what is learned from")
    return [puzzle for puzzle in puzzles if first[puzzle.clues] is puzzle]


def split_of(puzzles: Sequence[Puzzle], groups: dict[str, int], size: int) -> Split:
    """A row a puzzle; puzzles of one solution share a group. ``groups``: numbers of the solutions so far, which grow."""
    written = "".join(puzzle.solution + puzzle.clues for puzzle in puzzles).encode()
    solved, clues = torch.frombuffer(bytearray(written), dtype=torch.uint8).view(-1, 2, size**2).unbind(1)
    several = torch.tensor([puzzle.several for puzzle in puzzles])
    return Split(
        tokens=solved.int() - ord("1"), response=clues == ord("."), several=several if several.any() else None,
        group=torch.tensor([groups.setdefault(puzzle.solution, len(groups)) for puzzle in puzzles], dtype=torch.int64),
    )  # fmt: skip
