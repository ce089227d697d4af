"""Puzzles from files: each is solved anew, several solutions are told and ruled on, and what is no puzzle is named by its line."""

import csv
import random
from dataclasses import replace

import pytest
import torch

from pipeline.corpora.prepared import Prepared, Split, write
from pipeline.corpora.sudoku import Rules
from pipeline.errors import ConfigError, DataError
from pipeline.text.puzzle_files import PuzzleFiles
from pipeline.text.rendering import is_reference, is_solution


def written(grid):
    return "".join("." if cell is None else str(cell + 1) for cell in grid)


@pytest.fixture(scope="module")
def pairs():
    """Puzzles of four and more clues with one solution each, of many grids."""
    rules, rng = Rules(4), random.Random(0)
    made = [(rules.remove_clues(grid, rng.randint(6, 9), rng), grid) for grid in rules.grids(rng, 60)]
    return [(written(puzzle), written(grid)) for puzzle, grid in made if puzzle is not None]


@pytest.fixture(scope="module")
def ambiguous():
    """A puzzle of one clue a row, and two of its solutions, by trying all grids."""
    grids = list(Rules(4).solutions([None] * 16, limit=288))
    puzzle = (grids[0][0], *[None] * 15)
    first, second = [grid for grid in grids if grid[0] == puzzle[0]][:2]
    return written(puzzle), written(first), written(second)


@pytest.fixture
def raw(tmp_path, monkeypatch, pairs):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    fill(tmp_path, pairs[:40], pairs[40:])
    return tmp_path


def fill(folder, train, test):
    for name, lines in (("train.csv", train), ("test.csv", test)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("puzzle", "solution"), *lines])


CORPUS = PuzzleFiles("train.csv", "test.csv", "fetch --it", size=4, validation=0.3)


def test_puzzles_are_what_stands_in_the_files(raw, pairs):
    vocabulary, splits, source = CORPUS.prepare(0, raw)
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.sequence, vocabulary.rendering) == (5, 4, 16, "sudoku")
    assert set(source) == {"train.csv", "test.csv"}
    read = {
        name: [
            (written(None if r else t for t, r in zip(*row, strict=True)), written(row[0]))
            for row in zip(split.tokens.tolist(), split.response.tolist(), strict=True)
        ]
        for name, split in splits.items()
    }
    assert sorted(read["train"] + read["validation"]) == sorted(pairs[:40]) and read["test"] == pairs[40:]
    assert len(splits["validation"]) > 0 and not {s for _, s in read["train"]} & {s for _, s in read["validation"]}
    write(raw / "out", vocabulary, splits, source)
    assert len(Prepared(raw / "out").split("test")) == len(pairs[40:])


@pytest.mark.parametrize("where", ["train.csv", "test.csv"])
def test_puzzles_with_several_solutions_are_refused_by_default(raw, pairs, ambiguous, where):
    more = [*pairs[:5], ambiguous[:2], *pairs[5:20]]
    fill(raw, *((more, pairs[40:]) if where == "train.csv" else (pairs[:40], more)))
    with pytest.raises(DataError, match=rf"1 of 21 puzzles of .*{where} have more .* \(the first: .*{where}:7\); set "):
        CORPUS.prepare(0, raw)


def test_puzzles_with_several_solutions_are_left_out_if_asked_for(raw, pairs, ambiguous, capsys):
    fill(raw, pairs[:40], [*pairs[40:], ambiguous[:2], ambiguous[::2]])
    splits = replace(CORPUS, several="drop").prepare(0, raw)[1]
    n = len(pairs[40:])
    assert len(splits["test"]) == n
    assert f"2 of {n + 2} puzzles of {raw}/test.csv have more than one solution (the first: {raw}/test.csv:{n + 2}): left out" in (
        capsys.readouterr().out
    )


def test_any_solution_is_right_if_asked_for(raw, pairs, ambiguous, capsys):
    fill(raw, pairs[:40], [ambiguous[:2], *pairs[40:]])
    vocabulary, splits, _ = replace(CORPUS, several="accept").prepare(0, raw)
    assert vocabulary.rendering == "sudoku_any" and len(splits["test"]) == len(pairs[40:]) + 1
    assert "any of them is right" in capsys.readouterr().out


def test_what_is_right_keeps_clues_and_rules(ambiguous):
    puzzle, first, second = (torch.tensor([[".1234".index(c) - 1 for c in text]]) for text in ambiguous)
    split = Split(tokens=first, response=puzzle < 0, group=torch.zeros(1))
    other_clue = (first + 1) % 4  # a solution, of another puzzle
    broken = first.clone()
    broken[0, 15] = (broken[0, 15] + 1) % 4
    cases = ((first, True, True), (second, False, True), (other_clue, False, False), (broken, False, False))
    for answer, reference, solution in cases:
        assert bool(is_solution(answer, split)) is solution
        assert bool(is_reference(answer, split)) is reference


@pytest.mark.parametrize(
    ("puzzle", "solution", "told"),
    [
        ("1...", "1234341221434321", "\"puzzle\" must be 16 cells, each one of 1234 or '.' where it is empty; got '1...', 4 cells"),
        ("5" + "." * 15, "1234341221434321", '"puzzle" must be 16 cells'),
        ("1" + "." * 15, "123434122143432", '"solution" must be 16 cells'),
        ("2" + "." * 15, "1234341221434321", '"solution" does not hold the clues of "puzzle"'),
        ("1" + "." * 15, "1234341221434312", '"solution" breaks the rules'),
        ("1" + "." * 15, "123434122143432.", '"solution" breaks the rules'),
        ("1234341221434321", "1234341221434321", '"puzzle" has no empty cell'),
        ("", "1234341221434321", '"puzzle" must be a non-empty string'),
    ],
)
def test_what_is_no_puzzle_is_named(raw, pairs, puzzle, solution, told):
    fill(raw, [*pairs[:2], (puzzle, solution)], pairs[40:])
    with pytest.raises(DataError) as error:
        CORPUS.prepare(0, raw)
    assert str(error.value).startswith(f"{raw}/train.csv:4: ") and told in str(error.value)


def test_rows_that_do_not_fit_the_header_are_named(raw):
    (raw / "test.csv").write_text("puzzle,solution\n1...\n")
    with pytest.raises(DataError, match=r"test.csv:2: expected as many values as the header has names"):
        CORPUS.prepare(0, raw)


def test_settings_out_of_range_are_refused():
    for changes, told in (({"size": 5}, "PuzzleFiles.size must be one of 4, 6, 9, got 5"), ({"validation": 1.0}, "got 1.0")):
        with pytest.raises(ConfigError, match=told):
            replace(CORPUS, **changes).shape()


def test_a_missing_file_names_the_command_that_fetches_it(raw):
    (raw / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test.csv does not exist; fetch it with: fetch --it"):
        CORPUS.prepare(0, raw)
