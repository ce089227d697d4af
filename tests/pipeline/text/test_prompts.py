"""Prompts and answers of both kinds: round trips, where an answer stops, and what is no prompt."""

import pytest

from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import DataError, UserError
from pipeline.files import write_json
from pipeline.text import tokenizer as bpe
from pipeline.text.prompt_template import WORDING, PromptTemplate, write
from pipeline.text.prompts import Puzzles, Texts
from tests.support.trained import PUZZLE, PUZZLES, TEXTS

M = PUZZLES.mask_id


@pytest.fixture
def puzzles(tmp_path):
    return Puzzles(PUZZLES)


def texts_in(folder, prompt="Q: {question}\n", longest=64, frame=()):
    encoding = bpe.trained(TEXTS, 290)
    write(folder, encoding, PromptTemplate(prompt, encoding.special, *frame))
    return Texts(Vocabulary(encoding.size, encoding.id("mask"), encoding.id("pad"), 48, "text"), folder, longest), encoding


@pytest.mark.parametrize("written", [PUZZLE, "12../....\n..4./..2.", "12__ ____ 0040 __2_", "1 2 . . . . . . . . 4 . . . 2 ."])
def test_a_puzzle_however_it_is_written(puzzles, written):
    canvas = puzzles.canvas(written, None)
    assert canvas == [0, 1, M, M, M, M, M, M, M, M, 3, M, M, M, 1, M]
    assert puzzles.answer_places(canvas, [0] * 16) == [i for i, token in enumerate(canvas) if token == M]
    assert puzzles.text(canvas, []) == PUZZLE and puzzles.picture(PUZZLE) == "12..\n....\n..4.\n..2."
    assert [puzzles.token(i) for i in range(5)] == ["1", "2", "3", "4", "."]


@pytest.mark.parametrize(
    "wrong", ["", "12..", PUZZLE + ".", PUZZLE.replace("1", "5"), PUZZLE.replace("1", "x"), {"question": PUZZLE}]
)
def test_what_is_no_puzzle_is_refused_with_what_is(puzzles, wrong):
    with pytest.raises(DataError, match=r"a puzzle is 16 cells, each one of 1234 or '.' where it is empty; got"):
        puzzles.canvas(wrong, None)


def test_a_puzzle_has_no_length(puzzles):
    with pytest.raises(DataError, match=r"Generator.length must be None, got 3"):
        puzzles.canvas(PUZZLE, 3)


def test_text_stands_in_the_template_and_fills_the_sequence_or_the_length(tmp_path):
    texts, encoding = texts_in(tmp_path)
    prompt = encoding.encode("Q: How many?\n")
    assert texts.canvas("How many?", None) == prompt + [encoding.id("mask")] * (48 - len(prompt))
    assert texts.canvas({"question": "How many?", "answer": "3"}, 5) == prompt + [encoding.id("mask")] * 5
    assert len(texts.canvas("How many?", 50)) == len(prompt) + 50  # longer than what it was trained on, if the model can


def test_an_answer_ends_at_its_first_end_and_one_in_the_prompt_ends_nothing(tmp_path):
    texts, encoding = texts_in(tmp_path)
    end, mask = encoding.id("end"), encoding.id("mask")
    words = encoding.encode("12 apples")
    canvas = [end, 5, *[mask] * (len(words) + 3)]
    ids = [end, 5, *words, end, 7, mask]
    kept = texts.answer_places(canvas, ids)
    assert kept == list(range(2, 2 + len(words))) and texts.text(ids, kept) == "12 apples"
    assert "".join(texts.token(ids[i]) for i in kept) == "12 apples" and texts.end_id == end
    partial = [end, 5, *words[:-1], mask, mask, mask, end]
    assert texts.text(partial, texts.answer_places(canvas, partial)) == "12 apples"[: -len(texts.token(words[-1]))] + "___"


def test_a_template_of_several_fields_takes_an_object(tmp_path):
    texts, encoding = texts_in(tmp_path, "{a} + {b}")
    assert texts.canvas({"a": "12", "b": "3", "c": "4"}, 1) == [*encoding.encode("12 + 3"), encoding.id("mask")]
    with pytest.raises(DataError, match="has the fields a, b; give an object that holds them"):
        texts.canvas("12 + 3", None)


@pytest.mark.parametrize(
    ("prompt", "length", "told"),
    [
        ("  ", None, r'prompt: "question" must be a non-empty string'),
        ({"answer": "3"}, None, r'prompt: "question" must be a non-empty string, got None'),
        (["How many?"], None, r'prompt: "question" must be a non-empty string, got None'),
        ("a <mask> b", None, r"holds <mask>, which is a reserved token"),
        ("How many? " * 30, None, r"leaves no room for an answer in a sequence of 48"),
        ("How many?", 64, r"leaves no room for 64 more in a sequence of 64"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, prompt, length, told):
    with pytest.raises(DataError, match=told):
        texts_in(tmp_path)[0].canvas(prompt, length)


def test_a_chat_stands_around_the_prompt(tmp_path):
    texts, encoding = texts_in(tmp_path, "Q: {question}\n", frame=("User: ", " Bot: ", True))
    assert texts.canvas("How many?", 1)[:-1] == encoding.encode("User: Q: How many? Bot: ")


def test_a_causal_answer_is_what_is_written(tmp_path):
    encoding = bpe.trained(TEXTS, 290)
    write(tmp_path, encoding, PromptTemplate("{question}", {"end": "<end>", "pad": "<pad>"}))
    texts = Texts(Vocabulary(encoding.size, encoding.size, encoding.id("pad"), 48, "text", causal=True), tmp_path, 48)
    canvas, words = texts.canvas("Tom", 6), encoding.encode(" buys 3")
    prompt, none = canvas[: canvas.index(encoding.size)], encoding.size
    for rest in ([none] * 9, [encoding.id("end")] * 9):
        ids = (prompt + words + rest)[: len(canvas)]
        assert texts.text(ids, texts.answer_places(canvas, ids)) == " buys 3"


def test_another_models_tokenizer_is_refused(tmp_path):
    _, encoding = texts_in(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer.json is not the tokenizer of this model"):
        Texts(Vocabulary(encoding.size + 1, encoding.id("mask"), 0, 48, "text"), tmp_path, 48)


@pytest.mark.parametrize(
    "content",
    [[], {}, {"prompt": "no field", "special": {"end": "<end>", "pad": "<pad>"}}, {"prompt": 3, "special": {}}, {"later": 1}],
)
def test_a_malformed_wording_is_told(tmp_path, content):
    _, encoding = texts_in(tmp_path)
    write_json(tmp_path / WORDING, content)
    with pytest.raises(UserError):
        Texts(Vocabulary(encoding.size, encoding.id("mask"), 0, 48, "text"), tmp_path, 48)


def test_a_folder_prepared_before_there_was_one_names_the_stage(tmp_path):
    _, encoding = texts_in(tmp_path)
    (tmp_path / WORDING).unlink()
    with pytest.raises(DataError, match=r"prompt_template.json does not exist; it is written by stage prepare"):
        Texts(Vocabulary(encoding.size, encoding.id("mask"), 0, 48, "text"), tmp_path, 48)
