"""Generated puzzles: one solution each (checked without the solver), clues within range, splits apart, the same from a seed."""

import hashlib
import random
from itertools import combinations, permutations, product

import pytest
import torch

from pipeline.corpora.sudoku import Rules, Sudoku
from pipeline.errors import ConfigError

SMALL = {"train": 60, "validation": 10, "test": 12}


def prepare(tmp_path, seed=0, **changes):
    return Sudoku(**{**SMALL, **changes}).prepare(seed, tmp_path)


def puzzles(split):
    """Each puzzle as a tuple of digits, None at the response."""
    return [
        tuple(None if r else t for t, r in zip(tokens, response, strict=True))
        for tokens, response in zip(split.tokens.tolist(), split.response.tolist(), strict=True)
    ]


def fits(grid, size, height, width):
    """Every row, column and box holds every digit: the rules, written down a second time."""
    rows = [grid[i * size : (i + 1) * size] for i in range(size)]
    columns = [[row[i] for row in rows] for i in range(size)]
    boxes = [
        [rows[top + y][left + x] for y in range(height) for x in range(width)]
        for top, left in product(range(0, size, height), range(0, size, width))
    ]
    return all(sorted(unit) == list(range(size)) for unit in (*rows, *columns, *boxes))


@pytest.fixture(scope="module")
def all_grids():
    """Every 4x4 grid, by trying every combination of rows."""
    rows = list(permutations(range(4)))
    clashing = {(a, b): any(x == y for x, y in zip(a, b, strict=True)) for a in rows for b in rows}
    return [
        sum(four, ())
        for four in product(rows, repeat=4)
        if not any(clashing[pair] for pair in combinations(four, 2)) and fits(sum(four, ()), 4, 2, 2)
    ]


def test_there_are_288_grids_of_size_4(all_grids):
    found = Rules(4).grids(random.Random(0), 1000)
    assert len(all_grids) == 288
    assert len(found) == 288 and set(found) == set(all_grids)


def test_every_puzzle_has_exactly_one_solution(tmp_path, all_grids):
    _, splits, _ = prepare(tmp_path)
    for split in splits.values():
        for puzzle, tokens in zip(puzzles(split), split.tokens.tolist(), strict=True):
            solutions = [g for g in all_grids if all(p is None or p == c for p, c in zip(puzzle, g, strict=True))]
            assert solutions == [tuple(tokens)]


def test_clues_lie_within_their_range(tmp_path):
    _, splits, _ = prepare(tmp_path, clues=(5, 7), test_clues=(8, 6))
    clues = {name: (~split.response).sum(1) for name, split in splits.items()}
    assert set(clues["train"].tolist()) == {5, 6, 7} and set(clues["validation"].tolist()) <= {5, 6, 7}
    assert set(clues["test_8"].tolist()) == {8} and set(clues["test_6"].tolist()) == {6}


def test_splits_have_the_sizes_that_were_asked_for(tmp_path):
    _, splits, source = prepare(tmp_path, test_clues=(7, 6, 5))
    assert {name: len(s) for name, s in splits.items()} == {"train": 60, "validation": 10, "test_7": 12, "test_6": 12, "test_5": 12}
    assert source == {}


def test_no_solution_of_one_split_is_in_another(tmp_path):
    _, splits, _ = prepare(tmp_path, train=300)
    grids = {name: {tuple(t) for t in split.tokens.tolist()} for name, split in splits.items()}
    assert not grids["train"] & grids["validation"]
    assert all(not grids[a] & grids[b] for a in ("train", "validation") for b in ("test_5", "test_7"))


def test_puzzles_of_one_grid_share_a_group_and_no_others(tmp_path):
    _, splits, _ = prepare(tmp_path, train=300)
    for split in splits.values():
        pairs = {(tuple(t), int(g)) for t, g in zip(split.tokens.tolist(), split.group, strict=True)}
        assert len(pairs) == len({grid for grid, _ in pairs}) == len({group for _, group in pairs})


def test_puzzles_of_a_split_are_different(tmp_path):
    _, splits, _ = prepare(tmp_path, train=300)
    assert all(len(set(puzzles(split))) == len(split) for split in splits.values())


def test_the_vocabulary_is_digits_and_the_mask(tmp_path):
    vocabulary, splits, _ = prepare(tmp_path)
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.sequence, vocabulary.rendering) == (5, 4, 16, "sudoku")
    assert all(set(split.tokens.unique().tolist()) == {0, 1, 2, 3} for split in splits.values())


def same(one, other):
    return all(
        torch.equal(one[name].tokens, other[name].tokens) and torch.equal(one[name].response, other[name].response) for name in one
    )


def test_the_seed_decides_every_puzzle(tmp_path):
    first, again, other = (prepare(tmp_path, seed)[1] for seed in (3, 3, 4))
    assert same(first, again) and not same(first, other)


def test_more_training_puzzles_leave_the_test_puzzles_as_they_were(tmp_path):
    few, many = prepare(tmp_path)[1], prepare(tmp_path, train=80)[1]
    assert all(torch.equal(few[name].tokens, many[name].tokens) for name in ("validation", "test_5", "test_7"))


def test_size_6_works(tmp_path):
    vocabulary, splits, _ = prepare(
        tmp_path, size=6, grids=12, train=6, validation=2, test=2, clues=(14, 20), test_clues=(16,), held_out=0.2
    )
    assert (vocabulary.size, vocabulary.sequence) == (7, 36)
    for split in splits.values():
        assert all(fits(grid, 6, 2, 3) for grid in split.tokens.tolist())
        for puzzle, tokens in zip(puzzles(split), split.tokens.tolist(), strict=True):
            assert list(Rules(6).solutions(list(puzzle), limit=2)) == [tuple(tokens)]


def test_grids_of_size_9_keep_the_rules():
    grids = Rules(9).grids(random.Random(0), 3)
    assert len(set(grids)) == 3 and all(fits(grid, 9, 3, 3) for grid in grids)


@pytest.mark.parametrize("limit", [0, 1, 2, 100, 288, 400])
def test_solutions_stop_at_the_limit(limit):
    found = list(Rules(4).solutions([None] * 16, limit=limit))
    assert len(found) == len(set(found)) == min(limit, 288)


def test_a_contradiction_has_no_solution():
    assert list(Rules(4).solutions([0, 1, 2, None, None, None, None, 3] + [None] * 8, limit=1)) == []


def test_solving_leaves_the_puzzle_as_it_was():
    puzzle = [0, *[None] * 15]
    list(Rules(4).solutions(puzzle, limit=5))
    assert puzzle == [0, *[None] * 15]


@pytest.mark.parametrize("clues", [3, 2])
def test_clues_that_cannot_be_reached_give_no_puzzle(clues):
    """No 4x4 puzzle with fewer than four clues has one solution."""
    rules, rng = Rules(4), random.Random(0)
    assert all(rules.remove_clues(grid, clues, rng) is None for grid in rules.grids(rng, 10))


@pytest.mark.parametrize("size", [5, 1, 16])
def test_a_size_without_boxes_is_refused(tmp_path, size):
    with pytest.raises(ConfigError, match=rf"Sudoku.size must be one of 4, 6, 9, got {size}"):
        prepare(tmp_path, size=size)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": 9, "grids": 300}, "Sudoku.clues must lie within 17 and 80 at size 9, the lower number first, got 4..8"),
        ({"size": 9, "grids": 300, "clues": (30, 40), "test_clues": (7,)}, "Sudoku.test_clues must lie within 17 and 80 at size 9"),
        ({"size": 6, "clues": (7, 20), "test_clues": ()}, "Sudoku.clues must lie within 8 and 35"),
        ({"test_clues": (3,)}, "Sudoku.test_clues must lie within 4 and 15 at size 4, the lower number first, got 3..3"),
        ({"clues": (8, 5)}, "Sudoku.clues must lie within 4 and 15 at size 4, the lower number first, got 8..5"),
        ({"clues": (4, 16)}, "got 4..16"),
        ({"test": 900, "test_clues": (15,)}, "900 different test_15 puzzles with 15..15 clues on 48 grids are not "
            "to be had: expected 1 to 768"),
        ({"train": 0}, "0 different train puzzles"),
        ({"validation": -1}, "-1 different validation puzzles"),
        ({"grids": 2}, "12 different test_7 puzzles with 7..7 clues on 0 grids are not to be had"),
        ({"grids": 0}, "60 different train puzzles"),
        ({"held_out": 0.0}, "Sudoku.held_out must lie between 0 and 1, got 0.0"),
        ({"held_out": 1.0}, "Sudoku.held_out must lie between 0 and 1, got 1.0"),
        ({"guesses": (3, 2)}, "Sudoku.guesses must be the fewest and the most, the lower number first, got (3, 2)"),
        ({"guesses": (-1, 2)}, "Sudoku.guesses must be the fewest and the most"),
        ({"guesses": (0, -1)}, "the lower number first, got (0, -1)"),
        ({"size": 6, "clues": (9, 20), "test_clues": (), "grids": 28_200_961}, "and there are 28200960 at size 6"),
    ],
)  # fmt: skip
def test_what_cannot_exist_is_refused_before_anything_is_drawn(monkeypatch, changes, told):
    monkeypatch.setattr(Rules, "grids", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ConfigError) as error:
        Sudoku(**{**SMALL, **changes}).shape()
    assert told in str(error.value)


def test_clues_that_are_hardly_ever_reached_are_given_up(tmp_path, monkeypatch):
    """No random order of 6x6 reaches 8 clues in hundreds of attempts; 20 x 100 would be tried otherwise."""
    monkeypatch.setattr("pipeline.corpora.sudoku.HOPELESS", 50)
    with pytest.raises(
        ConfigError, match=r"found only 0 of 100 different test_8 puzzles with 8..8 clues on 2 grids in 51 attempts"
    ):
        prepare(tmp_path, size=6, grids=12, clues=(20, 24), test=100, test_clues=(8,))


def test_long_generation_shows_progress_in_a_log(tmp_path, racing_clock, capsys):
    prepare(tmp_path, size=6, grids=12, clues=(20, 24), train=60, validation=1, test=1, test_clues=(22,))
    shown = capsys.readouterr().err.splitlines()
    for label, n in (("grids", 12), ("train", 60)):
        lines = [line for line in shown if line.startswith(f"prepare {label}: ")]
        assert len(lines) == n and f"{n} of {n} | " in lines[-1] and "left" in lines[-1]


def test_more_puzzles_than_are_found_are_refused(tmp_path, monkeypatch):
    """With 15 clues each grid gives 16 puzzles: 768 attempts draw some of them twice."""
    monkeypatch.setattr("pipeline.corpora.sudoku.ATTEMPTS", 1)
    with pytest.raises(
        ConfigError, match=r"found only \d+ of 768 different test_15 puzzles with 15..15 clues on 48 grids in 768 attempts"
    ):
        prepare(tmp_path, train=1, clues=(6, 6), validation=1, test=768, test_clues=(15,))


@pytest.mark.parametrize(
    ("sha", "size", "grids", "train", "clues", "test_clues"),
    [
        ("8bbda2b4cfdbcc1c", 4, 288, 300, (4, 8), (7, 5)),
        ("f36e4be4208f849e", 6, 40, 120, (12, 20), (18, 13)),
        ("3b3db8d0f0e0fdd3", 9, 40, 30, (26, 40), (32, 27)),
    ],
)
def test_puzzles_stay_what_they_were(tmp_path, sha, size, grids, train, clues, test_clues):
    """Digests of tokens, responses and groups by the commits before: who trained on them finds them again."""
    digest = hashlib.sha256()
    for split in prepare(tmp_path, 3, size=size, grids=grids, train=train, clues=clues, test_clues=test_clues)[1].values():
        for tensor in (split.tokens, split.response, split.group):
            digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == sha


@pytest.mark.parametrize("guesses", [(0, 0), (1, 3), (0, 99)])
def test_puzzles_are_as_hard_as_was_asked_for(tmp_path, guesses):
    nine = {"size": 9, "grids": 20, "train": 30, "validation": 3, "test": 4, "clues": (24, 26), "test_clues": (25,)}
    splits = prepare(tmp_path, guesses=guesses, **nine)[1]
    for split in splits.values():
        searches = [Rules(9).solver.search(puzzle) for puzzle in puzzles(split)]
        assert split.difficulty.tolist() == [[search.rounds, search.guesses] for search in searches]
        assert all(guesses[0] <= search.guesses <= guesses[1] for search in searches)
    assert guesses != (0, 99) or len(splits["train"].difficulty[:, 1].unique()) > 1


def test_nobody_counts_where_no_difficulty_is_asked_for(tmp_path):
    assert all(split.difficulty is None for split in prepare(tmp_path)[1].values())


def test_a_difficulty_that_no_puzzle_has_is_given_up(tmp_path, monkeypatch):
    """Every 4x4 puzzle of 10 clues falls to singles."""
    monkeypatch.setattr("pipeline.corpora.sudoku.HOPELESS", 20)
    with pytest.raises(ConfigError, match=r"found only 0 of 60 different train puzzles with 10..10 clues and 5..9 guesses on"):
        prepare(tmp_path, guesses=(5, 9), clues=(10, 10))
