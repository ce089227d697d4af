"""Lines of puzzle files as people share them: names of columns, separators and line ends change nothing of what is read."""

import json

import pytest

from pipeline.corpora.sudoku import Rules
from pipeline.errors import DataError
from pipeline.text.puzzle_lines import PuzzleLine, puzzle_lines, solve

PUZZLES = [("1...341221434321", "1234341221434321"), ("12..34..21..43..", "1234341221434321"), ("." * 15 + "1", None)]
BOTH = PUZZLES[:2]


def zeros(text):
    return text.replace(".", "0")


FILES = {
    "plain lines": ("a.txt", "\n".join(p for p, _ in PUZZLES) + "\n", None),
    "zeros, no end of the last line": ("a.txt", "\n".join(zeros(p) for p, _ in PUZZLES), None),
    "underlines and other line ends": ("a.sdm", "\r\n".join(p.replace(".", "_") for p, _ in PUZZLES) + "\r\n", None),
    "rows of a grid apart": ("a.txt", "".join("/".join(p[i : i + 4] for i in (0, 4, 8, 12)) + "\n" for p, _ in PUZZLES), None),
    "blank lines": ("a.txt", "\n\n" + "\n \n".join(p for p, _ in PUZZLES) + "\n\n", None),
    "d1": ("a.csv", "Puzzle,Solution\n" + "".join(f"{zeros(p)},{s}\n" for p, s in BOTH), BOTH),
    "kaggle": ("a.csv", "quizzes,solutions\n" + "".join(f"{zeros(p)},{s}\n" for p, s in BOTH), BOTH),
    "quoted": ("a.csv", '"puzzle","solution"\n' + "".join(f'"{p}","{s}"\n' for p, s in BOTH), BOTH),
    "extreme": ("a.csv", "source,question,answer,rating\n" + "".join(f"kaggle,{p},{s},7\n" for p, s in BOTH), BOTH),
    "numbers first": ("a.csv", "id,puzzle,solution,clues\n" + "".join(f"{i},{p},{s},9\n" for i, (p, s) in enumerate(BOTH)), BOTH),
    "without a header": ("a.csv", "".join(f"{p},{s}\n" for p, s in BOTH), BOTH),
    "without a header, a number first": ("a.csv", "".join(f"{i},{p},{s},easy\n" for i, (p, s) in enumerate(BOTH)), BOTH),
    "a byte order mark": ("a.csv", "\ufeffPuzzle,Solution\r\n" + "".join(f"{p},{s}\r\n" for p, s in BOTH), BOTH),
    "a header and no solutions": ("a.csv", "rating,puzzles\n" + "".join(f"3,{p}\n" for p, _ in PUZZLES), None),
    "JSON lines": ("a.jsonl", "".join(json.dumps({"Quiz": p, "Answer": s}) + "\n" for p, s in BOTH), BOTH),
}


@pytest.mark.parametrize(("name", "text", "pairs"), FILES.values(), ids=list(FILES))
def test_puzzles_are_read_however_they_are_written(tmp_path, name, text, pairs):
    (tmp_path / name).write_bytes(text.encode())
    expected = pairs or [(puzzle, None) for puzzle, _ in PUZZLES]
    assert [(line.clues, line.solution) for line in puzzle_lines(tmp_path / name, 4)] == expected


def test_columns_are_taken_by_the_names_that_are_given(tmp_path):
    (tmp_path / "a.csv").write_text("puzzle,board,final\n-,{},{}\n".format(*BOTH[0]))
    (line,) = puzzle_lines(tmp_path / "a.csv", 4, "board", "final")
    assert (line.clues, line.solution, line.origin) == (*BOTH[0], f"{tmp_path}/a.csv:2")


@pytest.mark.parametrize(
    ("text", "columns", "told"),
    [
        ("board,final\n1...,1234\n", (), ":2: expected a column of puzzles (puzzle, puzzles, quiz, quizzes, "),
        ("puzzle,solution\n1...,1234\n", ("board",), ":2: expected a column 'board'; got 'puzzle', 'solution'; name it: Puzz"),
        ("puzzle,solution\n1...,1234\n", (None, "final"), ":2: expected a column 'final'; got 'puzzle', 'solution'"),
        ("puzzle,solution\n1...............\n", (), ":2: expected 2 values, as the first row, puzzle, solution, has; got 1;"),
        ("12..\n1...............\n", (), ':1: "puzzle" must be 16 cells'),
        ("1...............\n123456789........\n", (), ':2: "puzzle" must be 16 cells'),
        ('puzzle\n"1...', (), ":2: not valid CSV"),
        ("puzzle,puzzle\n1...,1234\n", (), ":1: the column 'puzzle' stands twice; rename one of them"),
    ],
)  # fmt: skip
def test_what_holds_no_puzzles_is_named(tmp_path, text, columns, told):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError) as error:
        list(puzzle_lines(tmp_path / "a.csv", 4, *columns))
    assert str(error.value).startswith(f"{tmp_path}/a.csv{told}")


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "{}\n"), ("a.json", "[{}]")])
def test_a_row_without_columns_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}.*1: expected a column of puzzles .*; got none; name it: PuzzleFiles.puzzle"):
        list(puzzle_lines(tmp_path / name, 4))


def test_a_puzzle_that_the_solver_cannot_tell_about_is_named(monkeypatch):
    monkeypatch.setattr("pipeline.text.puzzle_lines.GUESSES", 2)
    with pytest.raises(DataError, match=r"a.csv:7: whether .* one solution cannot be told \(2 guesses are not"):
        solve(Rules(4), PuzzleLine("a.csv:7", "." * 16, None), 2)
