"""Training puzzles of several solutions, against all 288 grids: how many solve each, and which of them is learned."""

import random

import pytest
import torch

from pipeline.corpora.ambiguous import ambiguous
from pipeline.corpora.sudoku import Rules, Sudoku
from pipeline.errors import ConfigError

SMALL = {"train": 80, "clues": (5, 7), "validation": 10, "test": 10, "test_clues": (7,)}
GRIDS = sorted(Rules(4).solutions([None] * 16, limit=288))


def fitting(clues):
    return [grid for grid in GRIDS if all(clue in (-1, cell) for clue, cell in zip(clues, grid, strict=True))]


def test_they_have_two_to_five_solutions_and_the_first_is_learned(tmp_path):
    plain, splits = (Sudoku(**SMALL, ambiguous=n).prepare(0, tmp_path)[1] for n in (0, 50))
    train = splits["train"]
    assert len(train) == 130 and torch.equal(train.tokens[:80], plain["train"].tokens)
    puzzles = torch.where(train.response, -1, train.tokens).tolist()
    for puzzle, target in zip(puzzles[80:], train.tokens[80:].tolist(), strict=True):
        solutions = fitting(puzzle)
        assert 2 <= len(solutions) <= 5 and tuple(target) == solutions[0]
    assert len({tuple(puzzle) for puzzle in puzzles}) == 130


def test_nothing_else_changes_and_no_grid_that_is_measured_is_learned(tmp_path):
    plain, splits = (Sudoku(**SMALL, ambiguous=n).prepare(0, tmp_path)[1] for n in (0, 50))
    for name in ("validation", "test_7"):
        assert torch.equal(splits[name].tokens, plain[name].tokens) and torch.equal(splits[name].response, plain[name].response)
        assert not set(splits[name].group.tolist()) & set(splits["train"].group.tolist())
    grid_of = {}
    for grid, group in zip(splits["train"].tokens.tolist(), splits["train"].group.tolist(), strict=True):
        assert grid_of.setdefault(group, grid) == grid


def test_more_than_there_are_is_refused():
    class Certain:
        def solutions(self, puzzle, limit):
            yield GRIDS[0]

    with pytest.raises(ConfigError, match=r"found only 0 of 3 different puzzles of two to 5 solutions; ask for fewer: Sudoku.ambi"):
        ambiguous(Certain(), random.Random(0), {GRIDS[0]: 0}, GRIDS[:1], 3)
