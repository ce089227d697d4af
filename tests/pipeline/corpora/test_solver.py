"""The reference solver: what it says of a puzzle against plain search, and its steps against puzzles counted by hand."""

import random
from itertools import product

import pytest

from pipeline.corpora.solver import Search, Solver
from pipeline.corpora.sudoku import BOXES, Rules

# published puzzles: an easy one, one of the hardest for people (21 clues) and one of 17 clues
EASY = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
INKALA = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
ROYLE = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"


def read(text):
    return [None if cell == "0" else int(cell) - 1 for cell in text]


def plain_solutions(puzzle, rows, columns, most=2):
    """Solutions by trying every value in the first empty cell: the rules, written down a second time."""
    size = rows * columns
    cells = list(product(range(size), repeat=2))
    of_units = [[(y, 0), (x, 1), ((y // rows, x // columns), 2)] for y, x in cells]
    placed = [(unit, value) for units, value in zip(of_units, puzzle, strict=True) for unit in units if value is not None]
    if len(set(placed)) < len(placed):
        return []
    if None not in puzzle:
        return [tuple(puzzle)]
    rest, empty = [], puzzle.index(None)
    for value in range(size):
        if len(rest) < most:
            rest += plain_solutions([*puzzle[:empty], value, *puzzle[empty + 1 :]], rows, columns, most - len(rest))
    return rest


@pytest.mark.parametrize("size", [4, 6])
def test_a_solution_is_seen_where_plain_search_finds_one(size):
    """Random cells of solved grids, some of them changed, so that many have no solution and many have several."""
    rng, rules, seen = random.Random(0), Rules(size), set()
    grids = rules.grids(rng, 30)
    for grid in grids:
        puzzle = [value if rng.random() < 0.4 else None for value in grid]
        if rng.random() < 0.5:
            clue = rng.choice([i for i, value in enumerate(puzzle) if value is not None])
            puzzle[clue] = rng.randrange(size)
        solutions = plain_solutions(puzzle, *BOXES[size], most=1)
        assert Solver(*BOXES[size]).search(puzzle).solved == bool(solutions)
        seen.add(bool(solutions))
    assert seen == {True, False}


@pytest.mark.parametrize("size", [4, 6])
def test_another_solution_is_seen_where_plain_search_finds_two(size):
    rng, rules, seen = random.Random(1), Rules(size), set()
    for grid in rules.grids(rng, 30):
        puzzle = [value if rng.random() < 0.45 else None for value in grid]
        empty = [i for i, value in enumerate(puzzle) if value is None]
        others = plain_solutions(puzzle, *BOXES[size], most=50)
        for cell in rng.sample(empty, 3):
            another = any(solution[cell] != grid[cell] for solution in others)
            if len(others) < 50 or another:
                assert Solver(*BOXES[size]).search(puzzle, without=(cell, grid[cell])).solved == another
                seen.add(another)
    assert seen == {True, False}


@pytest.mark.parametrize("size", [4, 6])
def test_solutions_are_those_of_plain_search_up_to_the_limit(size):
    rng, rules, seen = random.Random(2), Rules(size), set()
    for grid in rules.grids(rng, 30):
        puzzle = [value if rng.random() < 0.45 else None for value in grid]
        expected = plain_solutions(puzzle, *BOXES[size], most=40)
        found = rules.solver.solutions(puzzle, 40, 10_000)
        assert len(found) == len(set(found)) == len(expected)
        assert len(found) == 40 or set(found) == set(expected)
        assert rules.solver.solutions(puzzle, 1, 10_000) == found[:1] and all(map(rules.is_solved, found))
        seen.add(len(found))
    assert len(seen) > 3


def test_guesses_that_are_not_enough_are_an_error():
    solver = Solver(2, 2)
    assert len(solver.solutions([None] * 16, 288, 10_000)) == 288
    with pytest.raises(TimeoutError, match="10 guesses are not enough"):
        solver.solutions([None] * 16, 288, 10)
    assert solver.solutions([0, 0] + [None] * 14, 2, 10) == []


def test_steps_of_puzzles_that_are_counted_by_hand():
    grid = [0, 1, 2, 3, 2, 3, 0, 1, 1, 0, 3, 2, 3, 2, 1, 0]
    solver = Solver(2, 2)

    def without(*cells):
        return [None if cell in cells else value for cell, value in enumerate(grid)]

    assert solver.search(grid) == Search(True, 0, 0)
    assert solver.search(without(0)) == Search(True, 1, 0)
    # rows 0 and 2 may exchange 0 and 1 in columns 0 and 1: no single, and the first value tried in the first cell is right
    assert solver.search(without(0, 1, 8, 9)) == Search(True, 1, 1)
    # else 1 stands in the first cell, which leaves its row and its column one cell for 0; then the last one follows
    assert solver.search(without(0, 1, 8, 9), without=(0, 0)) == Search(True, 2, 0)
    assert solver.search([0, 0, *[None] * 14]) == Search(False, 0, 0)


def test_published_puzzles_are_as_hard_as_they_are_known_to_be():
    """The easy one falls to singles; the others do not, and each has one solution, which search without it confirms."""
    easy, royle, inkala = (Solver(3, 3).search(read(text)) for text in (EASY, ROYLE, INKALA))
    assert easy.solved and easy.guesses == 0 and easy.rounds > 1
    assert royle.solved and inkala.solved and inkala.guesses > easy.guesses and inkala.rounds > easy.rounds
    [solution] = Rules(9).solutions(read(EASY), limit=2)
    empty = [i for i, cell in enumerate(read(EASY)) if cell is None]
    assert not any(Solver(3, 3).search(read(EASY), without=(i, solution[i])).solved for i in empty)


def test_a_solved_puzzle_takes_one_round_of_its_hidden_and_naked_singles():
    """A round takes all singles at once: 9 emptied cells that share no row, column or box are all placed in the first."""
    [solution] = Rules(9).solutions(read(EASY), limit=1)
    apart = [r * 9 + (3 * r + r // 3) % 9 for r in range(9)]
    puzzle = [None if i in apart else value for i, value in enumerate(solution)]
    assert Solver(3, 3).search(puzzle) == Search(True, 1, 0)
