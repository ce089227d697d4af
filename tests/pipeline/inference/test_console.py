"""Prompts from the command line, files and pipes; answers as text, as lines of JSON, and drawn on a terminal."""

import io
import json
import re
import sys
from functools import partial

import pytest
import torch

from pipeline.errors import ConfigError, DataError
from pipeline.inference import console
from pipeline.inference.generation import Generator
from tests.support.trained import PUZZLE, puzzles

OTHER = "1..4/..../..../.3.."


@pytest.fixture
def make(tmp_path, runtime):
    puzzles(tmp_path)
    return partial(Generator, tmp_path / "outputs/joint", backbone=str(tmp_path / "data/backbone"), runtime=runtime)


def test_one_answer_is_text_alone(make, capsys):
    console.answer(make, PUZZLE, "", False)
    assert capsys.readouterr().out == make()(PUZZLE).text + "\n"


def test_confidence_is_a_line_a_token(make, capsys):
    console.answer(make, PUZZLE, "", True)
    answer, (first, *lines) = make()(PUZZLE), capsys.readouterr().out.splitlines()
    assert first == answer.text and len(lines) == 12
    assert lines == [f"{p:.4f} {t!r}" for t, p in zip(answer.tokens, answer.confidence, strict=True)]


def test_a_terminal_shows_every_pass_and_keeps_the_answer(make, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console.answer(make, PUZZLE, "", False)
    text, frames = make()(PUZZLE).text, terminal.getvalue().split("\x1b[4F\x1b[J")
    assert len(frames) == 14 and frames[0] == "12..\n....\n..4.\n..2.\n" and frames[-1] == f"{text}\n"
    assert torch.tensor([frame.count(".") for frame in frames[:-1]]).diff().tolist() == [-1] * 12


def test_life_is_shown_beside_the_answers(make, tmp_path, capsys, racing_clock):
    (tmp_path / "prompts.txt").write_text(f"{PUZZLE}\n{OTHER}\n")
    console.answer(make, "", str(tmp_path / "prompts.txt"), False)
    printed = capsys.readouterr()
    assert len([json.loads(line) for line in printed.out.splitlines()]) == 2 and "generate: 2 of 2 | " in printed.err


@pytest.mark.parametrize("source", ["file", "pipe", "dash"])
@pytest.mark.parametrize("confidence", [False, True])
def test_many_answers_are_lines_of_json(make, tmp_path, monkeypatch, capsys, source, confidence):
    text = f"{PUZZLE}\n\n{OTHER}\n"
    (tmp_path / "prompts.txt").write_text(text)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    console.answer(make, "", {"file": str(tmp_path / "prompts.txt"), "pipe": "", "dash": "-"}[source], confidence)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["text"], line["evaluations"]) for line in lines] == [
        (PUZZLE, make()(PUZZLE).text, 12), (OTHER, make()(OTHER).text, 13),
    ]  # fmt: skip
    assert set(lines[0]) == {"prompt", "text", "evaluations"} | ({"tokens", "confidence"} if confidence else set())


def test_a_line_that_begins_like_an_object_is_one(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "a", "answer": "b"}\nc {d}\n')
    assert console.read(str(tmp_path / "p.jsonl")) == [{"question": "a", "answer": "b"}, "c {d}"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no prompts"),
        (b"\n \n", "holds no prompts"),
        (b"a\n{b\n", r"p.txt:2: not valid JSON"),
        (b"\xff\xfe", "holds no prompts"),
        (b"\xff\xfea", r"p.txt:1: not text in utf-16, as its mark says"),
        (b"a\ncaf\xe9\n", r"p.txt:2: not text in UTF-8: byte 0xe9; is it Latin-1\? Save it as UTF-8"),
        (b"a\0b\0", r"p.txt:1: not text in UTF-8: a byte of zero; is it UTF-16\?"),
        (b"a\n" + b'{"a": ' * 100_000, r"p.txt:2: not valid JSON"),
    ],
)
def test_files_that_hold_no_prompts_are_told(tmp_path, content, told):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(DataError, match=told):
        console.read(str(tmp_path / "p.txt"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_prompts_in_the_encodings_of_other_tools_are_read(tmp_path, monkeypatch, encoding, end):
    content = end.join(["caf\u00e9 \u2192 \U0001f600", "", '{"question": "\u00e9"}', "--5 + 3", "\u2028 x"]).encode(encoding)
    (tmp_path / "p.txt").write_bytes(content)
    expected = ["caf\u00e9 \u2192 \U0001f600", {"question": "\u00e9"}, "--5 + 3", "\u2028 x"]
    assert console.read(str(tmp_path / "p.txt")) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)), encoding="ascii"))
    assert console.read("-") == expected


def test_a_folder_of_prompts_is_told(tmp_path):
    with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path))} cannot be read: it is a folder, and a file is expected"):
        console.read(str(tmp_path))


def test_a_missing_file_is_told_before_a_model_is_loaded(tmp_path):
    with pytest.raises(DataError, match=r"nothing.txt cannot be read"):
        console.answer(lambda: pytest.fail("loaded"), "", str(tmp_path / "nothing.txt"), False)


def test_a_prompt_is_needed_and_one_way_to_give_it(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for given, told in ((("", ""), 'give --prompt "..."'), (("a", "b"), "not both")):
        with pytest.raises(ConfigError, match=told):
            console.answer(lambda: pytest.fail("loaded"), *given, False)
