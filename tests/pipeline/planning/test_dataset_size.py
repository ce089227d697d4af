"""What is expected of a corpus beside what it becomes."""

import json

import pytest
import torch

from pipeline.corpora.sudoku import Sudoku
from pipeline.errors import ConfigError, DataError
from pipeline.planning.dataset_size import expected
from pipeline.text.jsonl import QuestionAnswers
from pipeline.text.puzzle_files import PuzzleFile, PuzzleFiles


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    for name, n in (("train", 200), ("test", 30)):
        lines = [
            {"question": f"What are {i} and {i % 7} more apples?", "answer": "They are " + "so " * (i % 9) + str(i)}
            for i in range(n)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def corpus(**changes):
    settings = {"train": "train.jsonl", "test": "test.jsonl", "download": "make it", "vocabulary": 300, "sequence": 40}
    return QuestionAnswers(**{**settings, **changes})


def test_puzzles_are_as_many_and_as_full_as_they_become(tmp_path):
    puzzles = Sudoku(train=400, validation=20, test=15, clues=(4, 8))
    guess, told = expected(puzzles)
    made = puzzles.prepare(0, tmp_path)[1]
    assert {name: len(split) for name, split in guess.items()} == {name: len(split) for name, split in made.items()}
    for name, split in guess.items():
        assert split.tokens.shape == made[name].tokens.shape and split.valid is None
        assert int(split.response.sum()) == pytest.approx(int(made[name].response.sum()), rel=0.05)
    assert guess["test_7"].response.sum(1).unique().tolist() == [9] and "clues" in told


def test_puzzles_of_several_solutions_are_counted_among_those_to_learn_from(tmp_path):
    puzzles = Sudoku(train=100, validation=20, test=15, ambiguous=60)
    guess, made = expected(puzzles)[0]["train"], puzzles.prepare(0, tmp_path)[1]["train"]
    assert len(guess) == len(made) == 160 == puzzles.training_examples()
    assert int(guess.response.sum()) == pytest.approx(int(made.response.sum()), rel=0.1)


@pytest.mark.parametrize("several", [{"test": "test.csv"}, {"test": 0.2}, {"test": 0.2, "limits": {"train": 50}}])
def test_puzzles_of_files_are_as_many_and_as_full_as_they_become(raw, several):
    generated = Sudoku(train=100, validation=20, test=15).prepare(0, raw)[1]
    for name, split in (("train", generated["train"]), ("test", generated["test_7"])):
        puzzles = [
            "".join("0" if r else str(int(t) + 1) for t, r in zip(*row, strict=True))
            for row in zip(split.tokens, split.response, strict=True)
        ]
        (raw / f"{name}.csv").write_text("\n".join(puzzles))
    files = PuzzleFiles(**{"train": "train.csv", "download": "", "size": 4, "validation": 0.2, **several})
    guess, made = expected(files)[0], files.prepare(0, raw)[1]
    assert set(guess) == set(made) and sum(map(len, guess.values())) == sum(map(len, made.values()))
    for name, split in guess.items():
        assert len(split) == pytest.approx(len(made[name]), abs=15)
        assert split.response.double().mean() == pytest.approx(float(made[name].response.double().mean()), abs=0.1)
    beside = Sudoku(train=100, validation=20, test=15, further={"public": PuzzleFile("test.csv", "")})
    assert torch.equal(expected(beside)[0]["public"].response.sum(1), generated["test_7"].response.sum(1))


def test_text_is_as_long_as_its_characters_let_expect(raw):
    guess, told = expected(corpus())
    made = corpus().prepare(0, raw / "out")[1]
    assert set(guess) == set(made) and len(guess["test"]) == 30
    assert len(guess["train"]) + len(guess["validation"]) == 200 and len(guess["validation"]) == 10
    assert guess["test"].lengths().double().mean() == pytest.approx(float(made["test"].lengths().double().mean()), rel=0.6)
    longest = guess["train"].lengths().argmax()
    assert bool(guess["train"].valid[longest, 0]) and not bool(guess["train"].response[longest, 0]) and "2.7 characters" in told


def test_the_first_examples_alone_are_expected_of_files_that_are_limited(raw):
    guess, made = (of(corpus(limits={"train": 80, "test": 3})) for of in (lambda c: expected(c)[0], lambda c: c.prepare(0, raw)[1]))
    for splits in (guess, made):
        assert len(splits["test"]) == 3 and len(splits["train"]) + len(splits["validation"]) == 80


def test_answers_that_are_padded_with_ends_fill_the_sequence(raw):
    guess, _ = expected(corpus(padding="end"))
    assert all(split.valid is None and bool(split.response[:, -1].all()) for split in guess.values())


def test_questions_that_fill_the_sequence_are_left_out(raw):
    guess, _ = expected(corpus(sequence=10))
    assert len(guess["test"]) == 0
    assert len(expected(corpus(sequence=14))[0]["test"]) > 0


def test_raw_files_that_are_missing_name_the_command_that_fetches_them(raw):
    (raw / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"test\.jsonl does not exist; fetch it with: make it"):
        expected(corpus())


def test_a_corpus_of_ones_own_has_to_be_prepared_first():
    with pytest.raises(ConfigError, match="how large a object will be is not known before it is prepared; run: dvc repro prepare"):
        expected(object())
