"""Token ids as people read them."""

import pytest

from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import DataError
from pipeline.text import tokenizer as bpe
from pipeline.text.detokenise import pieces, puzzle_renderer, text_renderer

SUDOKU = Vocabulary(size=5, mask_id=4, pad_id=4, sequence=16, rendering="sudoku")


@pytest.fixture
def text(tmp_path):
    """Render and tokenizer of a small text corpus."""
    tokenizer = bpe.train(["How many apples? Janet has 12."] * 5, 300)
    bpe.save(tokenizer, tmp_path / "tokenizer.json")
    mask, pad = bpe.special(tokenizer, bpe.MASK), bpe.special(tokenizer, bpe.PAD)
    return text_renderer(Vocabulary(tokenizer.get_vocab_size(), mask, pad, 16, "text"), tmp_path), tokenizer, mask, pad


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ([0, 1, 2, 3] * 4, "1234/1234/1234/1234"),
        ([4] * 16, "..../..../..../...."),
        ([0, 4, 4, 3] + [4] * 12, "1..4/..../..../...."),
    ],
)
def test_puzzles_are_rows_of_digits(ids, shown):
    assert puzzle_renderer(SUDOKU)(ids) == shown


def test_text_comes_back_and_padding_does_not(text):
    render, tokenizer, _, pad = text
    ids = tokenizer.encode("Janet has 12 apples? Ünïcode").ids
    assert render([*ids, pad, pad]) == "Janet has 12 apples? Ünïcode"


def test_masked_positions_show_one_by_one(text):
    render, tokenizer, mask, pad = text
    first, second = tokenizer.encode("Janet has").ids, tokenizer.encode(" apples").ids
    assert render([*first, mask, mask, *second, mask, pad]) == "Janet has__ apples_"
    assert render([mask]) == "_" and render([]) == "" and render([pad]) == ""


def test_the_end_token_is_shown(text):
    render, tokenizer, *_ = text
    assert render([*tokenizer.encode("12").ids, bpe.special(tokenizer, bpe.END)]) == "12<end>"


def test_text_without_its_tokenizer_names_the_stage(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer.json does not exist; run dvc repro prepare"):
        text_renderer(Vocabulary(300, 2, 0, 16, "text"), tmp_path)


def test_tokens_are_spelled_as_within_a_text(text):
    render, tokenizer, mask, pad = text
    ids = tokenizer.encode("How many apples? Janet has 12.").ids
    spelled = pieces([*ids, mask, pad], render)
    assert "".join(spelled[str(token)] for token in ids) == "How many apples? Janet has 12."
    assert spelled[str(mask)] == "_" and spelled[str(pad)] == "" and len(spelled) == len({*ids, mask, pad})


@pytest.mark.parametrize(
    ("ids", "spelled"),
    [
        ([1, 2], {"1": " a", "2": " b"}),
        ([3, 2, 3], {"2": " b", "3": "?"}),
        ([3], {"3": "?"}),
        ([], {}),
    ],
)
def test_a_space_that_a_tokenizer_drops_at_a_text_beginning_is_shown(ids, spelled):
    words = {1: " a", 2: " b", 3: "?"}
    assert pieces(ids, lambda tokens: "".join(words[token] for token in tokens).removeprefix(" ")) == spelled
