"""Public sets beside generated puzzles: nothing of the corpus changes, and what training has seen of them is counted."""

import random

import pytest
import torch

from pipeline.corpora.prepared import Prepared, write
from pipeline.corpora.sudoku import Rules, Sudoku
from pipeline.errors import ConfigError
from pipeline.text.puzzle_files import PuzzleFile

SMALL = {"train": 60, "clues": (6, 8), "validation": 10, "test": 10, "test_clues": (7,)}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Puzzles of seven empty cells on 40 grids."""
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    rng, lines = random.Random(5), ["Puzzle,Solution"]
    for grid in Rules(4).grids(rng, 40):
        solution = "".join(str(cell + 1) for cell in grid)
        empty = rng.sample(range(16), 7)
        lines.append("".join("0" if i in empty else cell for i, cell in enumerate(solution)) + "," + solution)
    (tmp_path / "public.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def written(cells):
    return "".join(str(int(cell) + 1) for cell in cells)


def test_a_public_set_is_a_test_split_beside_the_generated_ones(raw, capsys):
    corpus = Sudoku(**SMALL, further={"public": PuzzleFile("public.csv", "fetch it")})
    assert corpus.split_names() == ("train", "validation", "test_7", "public", "public_unseen")
    assert corpus.raw_files() == ("public.csv",)
    vocabulary, splits, source = corpus.prepare(0, raw)
    assert list(splits) == list(corpus.split_names()) and list(source) == ["public.csv"]
    rows = [line.split(",")[1] for line in (raw / "public.csv").read_text().splitlines()[1:]]
    learned = {written(grid) for grid in splits["train"].tokens}
    assert [written(grid) for grid in splits["public"].tokens] == rows
    assert [written(grid) for grid in splits["public_unseen"].tokens] == [row for row in rows if row not in learned]
    seen = sum(row in learned for row in rows)
    assert 0 < seen < 40
    told = (
        f"prepare: public: the solutions of {seen} of 40 puzzles are training targets, the other {40 - seen} are public_unseen; 0"
    )
    assert told in capsys.readouterr().out
    write(raw / "out", vocabulary, splits, source)
    assert len(Prepared(raw / "out").split("public_unseen")) == 40 - seen


def test_the_generated_splits_are_the_same_with_and_without(raw):
    plain, beside = (
        Sudoku(**SMALL, further=further).prepare(0, raw)[1] for further in ({}, {"public": PuzzleFile("public.csv", "")})
    )
    write(raw / "plain", Sudoku(**SMALL).prepare(0, raw)[0], plain, {})
    write(raw / "beside", Sudoku(**SMALL).prepare(0, raw)[0], beside, {})
    for name in plain:
        assert (raw / f"plain/{name}.safetensors").read_bytes() == (raw / f"beside/{name}.safetensors").read_bytes()


def test_rows_of_one_grid_are_one_group_in_all_splits(raw):
    splits = Sudoku(**SMALL, further={"public": PuzzleFile("public.csv", "")}).prepare(0, raw)[1]
    group_of = {}
    for split in splits.values():
        for grid, group in zip(split.tokens, split.group, strict=True):
            assert group_of.setdefault(written(grid), int(group)) == int(group)
    assert len(set(group_of.values())) == len(group_of)


def test_training_puzzles_in_a_public_set_are_counted_and_stay(raw, capsys):
    train = Sudoku(**SMALL).prepare(0, raw)[1]["train"]
    puzzles = torch.where(train.response, -1, train.tokens)[:3]
    (raw / "own.txt").write_text("".join(f"{written(row)}\n" for row in puzzles))
    splits = Sudoku(**SMALL, further={"own": PuzzleFile("own.txt", "")}).prepare(0, raw)[1]
    assert torch.equal(splits["own"].tokens, train.tokens[:3]) and torch.equal(splits["train"].tokens, train.tokens)
    assert "own_unseen" not in splits
    assert "the solutions of 3 of 3 puzzles are training targets" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "test_7", "validation"])
def test_a_name_of_the_corpus_own_splits_is_refused(raw, name):
    corpus = Sudoku(**SMALL, further={name: PuzzleFile("public.csv", "")})
    with pytest.raises(ConfigError, match=f"Sudoku.further names a split '{name}', which the corpus makes itself"):
        corpus.split_names()
