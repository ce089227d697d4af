"""Puzzles from files: each is solved, several solutions are told and ruled on, and what is no puzzle is named by its line."""

import csv
import random
import re
from dataclasses import replace

import pytest
import torch

from pipeline.corpora.prepared import Prepared, Split, write
from pipeline.corpora.sudoku import Rules
from pipeline.errors import ConfigError, DataError
from pipeline.text.puzzle_files import PuzzleFile, PuzzleFiles
from pipeline.text.rendering import is_reference, is_solution, right_of


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


def read(split):
    """Puzzle and solution of each row, as they are written."""
    return [
        (written(None if r else t for t, r in zip(*row, strict=True)), written(row[0]))
        for row in zip(split.tokens.tolist(), split.response.tolist(), strict=True)
    ]


CORPUS = PuzzleFiles("train.csv", "test.csv", "fetch --it", size=4, validation=0.3)


def test_puzzles_are_what_stands_in_the_files(raw, pairs):
    vocabulary, splits, source = CORPUS.prepare(0, raw)
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.sequence, vocabulary.rendering) == (5, 4, 16, "sudoku")
    assert set(source) == {"train.csv", "test.csv"}
    rows = {name: read(split) for name, split in splits.items()}
    assert sorted(rows["train"] + rows["validation"]) == sorted(pairs[:40]) and rows["test"] == pairs[40:]
    assert len(splits["validation"]) > 0 and not {s for _, s in rows["train"]} & {s for _, s in rows["validation"]}
    write(raw / "out", vocabulary, splits, source)
    assert len(Prepared(raw / "out").split("test")) == len(pairs[40:])


def test_puzzles_to_learn_from_with_several_solutions_are_refused_by_default(raw, pairs, ambiguous):
    fill(raw, [*pairs[:5], ambiguous[:2], *pairs[5:20]], pairs[40:])
    with pytest.raises(DataError, match=r"train.csv:7: the puzzle has more than one solution, as 1 of \d+ to learn from; remove "):
        CORPUS.prepare(0, raw)


def test_puzzles_to_learn_from_with_several_solutions_are_left_out_if_asked_for(raw, pairs, ambiguous, capsys):
    fill(raw, [*pairs[:40], ambiguous[:2], ambiguous[::2]], pairs[40:])
    splits = replace(CORPUS, several="drop").prepare(0, raw)[1]
    assert (
        len(splits["train"]) + len(splits["validation"]) == 40 and splits["train"].several is splits["validation"].several is None
    )
    told = capsys.readouterr().out
    assert f"2 of 42 puzzles have more than one solution (the first: {raw}/train.csv:42)" in told
    assert re.search(r"1 of \d+ puzzles have more than one solution: left out of what is learned from", told)


def test_tests_may_have_several_solutions_and_say_which(raw, pairs, ambiguous, capsys):
    fill(raw, pairs[:40], [ambiguous[:2], *pairs[40:], ambiguous[::2]])
    vocabulary, splits, source = CORPUS.prepare(0, raw)
    several = splits["test"].several
    assert several.nonzero()[:, 0].tolist() == [0, len(several) - 1] and splits["train"].several is None
    n = len(pairs[40:]) + 2
    told = capsys.readouterr().out
    assert f"2 of {n} puzzles have more than one solution (the first: {raw}/test.csv:2)" in told
    assert f"2 of {n} puzzles stand there more than once (the first: {raw}/test.csv:2)" in told
    write(raw / "out", vocabulary, splits, source)
    prepared = Prepared(raw / "out")
    assert prepared.manifest["splits"]["test"] == {"examples": n, "several_solutions": 2}
    assert "several_solutions" not in prepared.manifest["splits"]["train"]
    assert torch.equal(prepared.split("test").several, several)
    assert right_of(prepared.split("test"), vocabulary) is is_solution
    assert right_of(prepared.split("train"), vocabulary) is is_reference


def test_a_second_solution_is_not_looked_for_if_the_file_is_believed(raw, pairs, ambiguous):
    fill(raw, pairs[:40], [ambiguous[:2], *pairs[40:]])
    assert replace(CORPUS, solutions="unchecked").prepare(0, raw)[1]["test"].several is None


def test_a_puzzle_is_not_learned_from_twice_nor_if_it_is_measured(raw, pairs, capsys):
    fill(raw, [*pairs[:40], pairs[3], pairs[40]], pairs[40:])
    splits = CORPUS.prepare(0, raw)[1]
    rows = [row for name in ("train", "validation") for row in read(splits[name])]
    assert sorted(rows) == sorted(pairs[:40]) and read(splits["test"]) == pairs[40:]
    told = capsys.readouterr().out
    for line in (f"puzzles stand there already: left out of what is learned from (the first: {raw}/train.csv:42)",
                 f"are in the test split too: left out of train (the first: {raw}/train.csv:43)"):  # fmt: skip
        assert line in told or line.replace("left out of train", "left out of validation") in told


def test_splits_are_files_or_shares_of_the_training_file(raw, pairs):
    fill(raw, pairs, pairs[:20])
    shares = replace(CORPUS, test=0.3, validation=0.2).prepare(0, raw)[1]
    parts = {name: {solution for _, solution in read(split)} for name, split in shares.items()}
    assert sorted(row for split in shares.values() for row in read(split)) == sorted(pairs)
    assert (
        not parts["train"] & parts["test"] and not parts["train"] & parts["validation"] and not parts["test"] & parts["validation"]
    )
    assert all(0 < len(split) < len(pairs) for split in shares.values())
    fill(raw, pairs[9:], pairs[:20])
    corpus = replace(CORPUS, validation="test.csv", test=0.3)
    files = corpus.prepare(0, raw)[1]
    left = {row[0] for row in read(files["train"])} | {row[0] for row in read(files["test"])}
    assert {row[0] for row in read(files["validation"])} == {p for p, _ in pairs[:20]} - left
    assert corpus.raw_files() == ("train.csv", "test.csv") and replace(corpus, validation=0.1).raw_files() == ("train.csv",)


def test_as_many_puzzles_are_drawn_as_the_limits_say(raw, pairs):
    corpus = replace(CORPUS, limits={"train": 20, "test": 7})
    first, again, other = (corpus.prepare(seed, raw)[1] for seed in (0, 0, 1))
    assert len(first["train"]) + len(first["validation"]) == 20 == corpus.training_examples() and len(first["test"]) == 7
    assert [read(s) for s in first.values()] == [read(s) for s in again.values()]
    assert read(first["train"]) != read(other["train"]) and set(read(other["test"])) < set(pairs[40:])


def test_two_splits_of_one_file_draw_other_puzzles_of_it(raw, pairs):
    fill(raw, pairs, pairs[:1])
    corpus = replace(CORPUS, validation="train.csv", test=0.1, limits={"train": 20, "validation": 20})
    parts = {name: {puzzle for puzzle, _ in read(split)} for name, split in corpus.prepare(0, raw)[1].items()}
    assert len(parts["train"]) + len(parts["test"]) == 20 and 5 < len(parts["validation"]) < 20
    assert not parts["validation"] & (parts["train"] | parts["test"])


def test_the_number_of_solutions_is_what_trying_all_grids_says(raw):
    """Against a plain count over the 288 grids: puzzles of 3 to 9 clues, without their solutions."""
    grids, rng = [written(grid) for grid in Rules(4).solutions([None] * 16, limit=288)], random.Random(1)
    puzzles = [
        "".join(rng.choices((cell, "."), (k, 16 - k))[0] for cell in rng.choice(grids)) for k in range(3, 10) for _ in range(8)
    ]
    (raw / "only.txt").write_text("\n".join(puzzles) + "\n")
    for puzzle in PuzzleFile("only.txt", "").read(4, 0):
        fitting = [grid for grid in grids if all(a in (".", b) for a, b in zip(puzzle.clues, grid, strict=True))]
        assert puzzle.solution in fitting and puzzle.several == (len(fitting) > 1)


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


SOLVED = "1234341221434321"
MISTAKES = {
    "three cells short": ("1...", SOLVED, '"puzzle" must be 16 cells, each one of 1234 or \'.\', '),
    "one cell more": ("1" + "." * 16, SOLVED, "got 17 cells"),
    "a digit of larger puzzles": ("..5" + "." * 13, SOLVED, "got '5' in cell 3"),
    "a letter": ("1x" + "." * 14, SOLVED, "got 'x' in cell 2"),
    "a digit of another script": ("1" + "." * 14 + "\u0663", SOLVED, "in cell 16"),
    "a solution that is short": ("1" + "." * 15, SOLVED[1:], '"solution" must be 16 cells'),
    "a solution of other clues": ("2" + "." * 15, SOLVED, "the solution does not hold the puzzle's clues"),
    "a solution that breaks a column": ("1" + "." * 15, "1234341221434312", "breaks the rules: 1 stands twice in column 3"),
    "a solution that breaks a box": ("1" + "." * 15, "1234234134124123", "the solution breaks the rules: 2 stands twice in box 1"),
    "a solution with a hole": ("1" + "." * 15, SOLVED[:-1] + ".", "the solution breaks the rules: a cell is empty"),
    "clues that contradict in a row": ("1..1" + "." * 12, SOLVED, "the clues contradict each other: 1 stands twice in row 1"),
    "clues that contradict in a box": ("2...." + "2" + "." * 10, SOLVED, "clues contradict each other: 2 stands twice in box 1"),
    "nothing to solve": (SOLVED, SOLVED, "the puzzle has no empty cell: there is nothing to solve"),
    "no puzzle at all": ("", SOLVED, '"puzzle" must be a non-empty string'),
}  # fmt: skip


@pytest.mark.parametrize(("puzzle", "solution", "told"), MISTAKES.values(), ids=list(MISTAKES))
def test_what_is_no_puzzle_is_named(raw, pairs, puzzle, solution, told):
    fill(raw, [*pairs[:2], (puzzle, solution)], pairs[40:])
    with pytest.raises(DataError) as error:
        CORPUS.prepare(0, raw)
    assert str(error.value).startswith(f"{raw}/train.csv:4: ") and told in str(error.value)


@pytest.mark.parametrize(
    ("puzzle", "told"),
    [
        ("123." + "...4" + "." * 8, "the puzzle has no solution; mend or remove the line"),
        ("..12" + "12.." + "." * 8, None),
        ("3..3" + "." * 12, "the clues contradict each other: 3 stands twice in row 1"),
    ],
)
def test_a_puzzle_without_a_solution_beside_it_is_solved_or_named(raw, puzzle, told):
    (raw / "bare.txt").write_text(f"1...............\n{puzzle}\n")
    if told is None:
        assert len(PuzzleFile("bare.txt", "").examples(4, 0)) == 2
        return
    with pytest.raises(DataError) as error:
        PuzzleFile("bare.txt", "").examples(4, 0)
    assert str(error.value).startswith(f"{raw}/bare.txt:2: {told}")


def test_rows_that_do_not_fit_the_header_are_named(raw):
    (raw / "test.csv").write_text("puzzle,solution\n1...\n")
    with pytest.raises(DataError, match=r"test.csv:2: expected . values, as the first row, .*, has; got .; mend the line"):
        CORPUS.prepare(0, raw)


def test_settings_out_of_range_are_refused():
    for changes, told in (
        ({"size": 5}, "PuzzleFiles.size must be one of 4, 6, 9, got 5"),
        ({"validation": 1.0}, "PuzzleFiles.validation must be a file, or a share between 0 and 1, got 1.0"),
        ({"test": 0}, "PuzzleFiles.test must be a file, or a share between 0 and 1, got 0"),
        ({"limits": {"validation": 3}}, "PuzzleFiles.limits counts puzzles of the files train, test, got 'validation'"),
    ):
        with pytest.raises(ConfigError, match=told):
            replace(CORPUS, **changes).shape()


def test_a_missing_file_names_the_command_that_fetches_it(raw):
    (raw / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test.csv does not exist; fetch it with: fetch --it"):
        CORPUS.prepare(0, raw)
