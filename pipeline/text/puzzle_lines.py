"""Lines of a file of grid puzzles: which columns hold puzzle and solution, and whether what stands in them is one.

CSV with or without a header, plain lines (CSV of one column), JSON lines or Parquet. A grid is written row by row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from pipeline.corpora.sudoku import BOXES, Rules
from pipeline.errors import DataError
from pipeline.text.fields import checked
from pipeline.text.prompts import EMPTY
from pipeline.text.tables import csv_rows, rows

PUZZLE, SOLUTION = "puzzle", "solution"
NAMES = {  # of columns in the files that people share, in small letters
    PUZZLE: ("puzzle", "puzzles", "quiz", "quizzes", "question", "questions"),
    SOLUTION: ("solution", "solutions", "answer", "answers"),
}
GUESSES = 20_000  # of the solver for a puzzle: seconds; the hardest ones that are known take a few hundred
TABLES = (".jsonl", ".json", ".parquet")  # whose rows always have names


@dataclass(frozen=True, slots=True)
class PuzzleLine:
    """A puzzle as its file states it.

    Attributes:
        origin: where it stands (file:line).
        clues: digits row by row, "." where a cell is empty.
        solution: digits row by row; None where the file gives none.
    """

    origin: str
    clues: str
    solution: str | None


def puzzle_lines(path: Path, size: int, puzzle: str | None = None, solution: str | None = None) -> Iterator[PuzzleLine]:
    """Every line in order; none is skipped but blank ones.

    Args:
        path: of the file.
        size: digits of a puzzle.
        puzzle: column of the puzzle; None = the one of a usual name, without a header the first that holds a grid.
        solution: column of its solution; None = likewise, if there is one.

    Raises:
        DataError: a column is not there, or a line holds no grids; it names file and line, and the mend.
    """
    table = rows(path) if path.suffix in TABLES else csv_rows(path, partial(_headerless, cells=size**2))
    names: tuple[str, ...] | None = None
    for origin, row in table:
        if tuple(row) != names:
            names = tuple(row)
            columns = _column(row, origin, PUZZLE, puzzle, size), _column(row, origin, SOLUTION, solution, size)
        texts = checked(row, origin, [name for name in columns if name is not None], ())
        clues, listed = (None if name is None else _grid(texts[name], origin, name, size) for name in columns)
        assert clues is not None
        yield PuzzleLine(origin, clues, listed)


def _headerless(first: list[str], cells: int) -> list[str] | None:
    """Name the columns of a file whose first row holds a grid already; None where it is a header."""
    texts = [_cells(value) for value in first]
    grids = [i for i, text in enumerate(texts) if text and set(text) <= {*"0123456789", *EMPTY}]
    grids = [i for i in grids if len(texts[i]) == cells] or grids
    if not grids:
        return None
    named = dict(zip(grids, (PUZZLE, SOLUTION), strict=False))
    return [named.get(i, f"column {i + 1}") for i in range(len(first))]


def _column(row: Mapping[str, object], origin: str, what: str, given: str | None, size: int) -> str | None:
    if given is not None and given in row:
        return given
    usual = next((name for name in row if name.strip().lower() in NAMES[what]), None)
    if given is None and (usual is not None or what == SOLUTION):
        return usual
    expected = f"a column '{given}'" if given else f"a column of {what}s ({', '.join(NAMES[what])}), or a grid of {size**2} cells"
    got = ", ".join(map(repr, row))[:200] or "none"
    raise DataError(f"{origin}: expected {expected}; got {got}; name it: PuzzleFiles.{what}")


def _cells(text: str) -> str:
    return "".join(text.replace("/", " ").split())


def _grid(text: str, origin: str, column: str, size: int) -> str:
    """Read digits and empty cells."""
    cells, digits = _cells(text), "123456789"[:size]
    alien = sorted({*cells} - {*digits, *EMPTY})
    if len(cells) != size**2 or alien:
        wrong = f"{len(cells)} cells" if len(cells) != size**2 else f"{alien[0]!r} in cell {cells.index(alien[0]) + 1}"
        expected = f"{size**2} cells, each one of {digits} or '.', '0' or '_' where it is empty"
        raise DataError(f'{origin}: "{column}" must be {expected}; got {wrong}: {text[:100]!r}; mend or remove the line')
    return "".join("." if cell in EMPTY else cell for cell in cells)


def solve(rules: Rules, line: PuzzleLine, limit: int) -> tuple[str, bool]:
    """Return the solution that counts as listed, the file's or else the solver's first, and whether there are others.

    Args:
        rules: of the puzzle's size.
        line: what the file says.
        limit: solutions that are looked for; 1 = others are not, where the file gives one none is.

    Raises:
        DataError: clues contradict each other, the solution is none, there is no solution, or nothing is to be solved; or
            ``GUESSES`` do not tell.
    """
    clues, listed, where = line.clues, line.solution, f"{line.origin}: "
    if "." not in clues:
        raise DataError(f"{where}the puzzle has no empty cell: there is nothing to solve; remove the line")
    fault = "" if listed is None else _fault(clues, listed, rules.size)
    if (fault or listed is None) and (twice := _twice(clues, rules.size)):
        raise DataError(f"{where}the clues contradict each other: {twice}; mend or remove the line")
    if fault:
        raise DataError(f"{where}the solution {fault}; mend or remove the line")
    if listed is not None and limit == 1:
        return listed, False
    puzzle = [None if cell == "." else int(cell) - 1 for cell in clues]
    try:
        solutions = ["".join(str(cell + 1) for cell in grid) for grid in rules.solver.solutions(puzzle, limit, GUESSES)]
    except TimeoutError as error:
        raise DataError(f"{where}whether the puzzle has one solution cannot be told ({error}); mend or remove the line") from None
    if not solutions:
        raise DataError(f"{where}the puzzle has no solution; mend or remove the line")
    return listed or solutions[0], len(solutions) > 1


def _fault(clues: str, listed: str, size: int) -> str:
    """Say what a listed solution does wrong; "" = nothing."""
    if any(clue not in (".", cell) for clue, cell in zip(clues, listed, strict=True)):
        return "does not hold the puzzle's clues"
    wrong = "a cell is empty" if "." in listed else _twice(listed, size)
    return f"breaks the rules: {wrong}" if wrong else ""


def _twice(cells: str, size: int) -> str:
    """Say which digit a row, column or box holds twice; "" = none does."""
    for kind, units in _units(size).items():
        for number, unit in enumerate(units, 1):
            digits = [cells[i] for i in unit if cells[i] != "."]
            if repeated := sorted(digit for digit in {*digits} if digits.count(digit) > 1):
                return f"{repeated[0]} stands twice in {kind} {number}"
    return ""


@cache
def _units(size: int) -> dict[str, list[Sequence[int]]]:
    height, width = BOXES[size]
    cells, line = range(size**2), range(size)
    boxes = [(i // size // height) * (size // width) + i % size // width for i in cells]
    return {
        "row": [[i for i in cells if i // size == row] for row in line],
        "column": [[i for i in cells if i % size == column] for column in line],
        "box": [[i for i in cells if boxes[i] == box] for box in line],
    }
