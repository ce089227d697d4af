"""What is proposed for puzzles of one's own, against what prepare then makes of them."""

import pytest

from pipeline.corpora.sudoku import Sudoku
from pipeline.errors import DataError
from pipeline.planning.own_puzzles import SIZES, grid_size, own_puzzles


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    return tmp_path


def grids(path, split, *, solutions=True, header=True):
    """Write a split as the files that people share."""
    rows = []
    for tokens, empty in zip(split.tokens.tolist(), split.response.tolist(), strict=True):
        clues = "".join("." if blank else str(token + 1) for token, blank in zip(tokens, empty, strict=True))
        rows.append(",".join([clues, *["".join(str(token + 1) for token in tokens)] * solutions]))
    path.write_text("\n".join(["puzzle,solution"[: None if solutions else 6]] * header + rows) + "\n")
    return path


@pytest.fixture(scope="module")
def made():
    return Sudoku(train=300, validation=20, test=30).prepare(0, None)[1]


def test_prepare_makes_the_splits_that_were_told(raw, made):
    data = own_puzzles(grids(raw / "mine.csv", made["train"]), None, 4)
    splits = data.corpus.prepare(0, None)[1]
    assert len(splits["train"]) == data.learned and len(splits["test"]) == data.tested
    assert "300 puzzles of 4x4, all with solutions; 4 to 8 clues" in data.seen[0]


def test_puzzles_of_both_files_are_told(raw, made):
    train, test = grids(raw / "mine.csv", made["train"]), grids(raw / "test.csv", made["train"].take(slice(0, 7)))
    data = own_puzzles(train, test, 4)
    assert data.seen[-1].startswith("shared: 7 puzzles are in both files") and data.corpus.test == "test.csv"
    assert len(data.corpus.prepare(0, None)[1]["test"]) == data.tested == 7


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ("..32.....21....4\n", 4), ("puzzle\n..32.....21....4\n", 4), (f"{'0' * 80}1\n", 9), (f"{'.' * 36},{'1' * 36}\n", 6),
        ("question,answer\nWhat?,4\n", None), ("", None), ('{"question": "What is 1 + 1?"}\n', None), ("words\n", None),
        ("12345\n", None),
    ],
)  # fmt: skip
def test_a_file_of_grids_is_known_by_its_first_line(raw, content, size):
    (raw / "a.csv").write_text(content)
    assert grid_size(raw / "a.csv") == size


def test_a_later_line_that_is_no_puzzle_is_named(raw, made):
    file = grids(raw / "mine.csv", made["train"])
    file.write_text(file.read_text() + "..32\n")
    with pytest.raises(DataError, match=r"mine.csv:302: expected 2 values, as the first row, puzzle, solution, has; got 1"):
        own_puzzles(file, None, 4)


@pytest.mark.parametrize("size", SIZES)
def test_a_preset_has_the_sizes_of_the_shipped_one(size):
    shipped = {}
    with open(f"gin/presets/sudoku{size}.gin") as file:
        for line in file:
            name, equals, value = line.partition(" = ")
            if equals:
                shipped[name] = value.partition("#")[0].strip()
    proposed = {name: repr(value) for name, value in SIZES[size].items()}
    defaults = {"RECURSION_STEPS": "4", "STATE_DTYPE": "'fp32'"}
    for name, value in proposed.items():
        expected = shipped.get(name, defaults.get(name))
        assert value == expected or float(value) == float(expected), name
