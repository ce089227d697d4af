"""Byte-pair encoding: specials, digits, exact round trips, the same file twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from pipeline.errors import DataError
from pipeline.text import tokenizer as bpe

TEXTS = ["Janet has 12 apples and eats 345 of them.", "She has 6789 left, naturally!"] * 10


@pytest.fixture(scope="module")
def trained():
    return bpe.train(TEXTS, 320)


@pytest.mark.parametrize(("token", "expected"), [(bpe.PAD, 0), (bpe.END, 1), (bpe.MASK, 2)])
def test_special_tokens_have_fixed_ids(trained, token, expected):
    assert bpe.special(trained, token) == expected
    assert trained.encode(token).ids == [expected]


def test_a_special_token_that_is_missing_is_named(trained):
    with pytest.raises(DataError, match=r"the tokenizer has no token <sep>; run dvc repro prepare"):
        bpe.special(trained, "<sep>")


@settings(max_examples=25, deadline=None)
@given(st.text().filter(lambda text: not any(s in text for s in (bpe.PAD, bpe.END, bpe.MASK))))
def test_any_text_comes_back_exactly(trained, text):
    assert trained.decode(trained.encode(text).ids, skip_special_tokens=False) == text


@settings(max_examples=25, deadline=None)
@given(st.text("0123456789", min_size=1))
def test_every_digit_is_a_token(trained, number):
    assert [trained.decode([i]) for i in trained.encode(number).ids] == list(number)


def test_digits_stay_single_however_often_they_were_seen_together(trained):
    assert len(trained.encode("12").ids) == 2
    assert len(trained.encode("apples").ids) < 6  # letters do merge


def test_the_size_is_a_bound(trained):
    assert trained.get_vocab_size() <= 320
    assert bpe.train(TEXTS, 270).get_vocab_size() == 270


def test_the_same_texts_give_the_same_file(tmp_path, trained):
    bpe.save(trained, tmp_path / "a.json")
    bpe.save(bpe.train(list(TEXTS), 320), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_saved_tokenizer_encodes_as_before(tmp_path, trained):
    bpe.save(trained, tmp_path / "t.json")
    text = "Naïve 日本 <mask> 42\n"
    assert bpe.load(tmp_path / "t.json").encode(text).ids == trained.encode(text).ids


def test_a_missing_tokenizer_names_the_stage(tmp_path):
    with pytest.raises(DataError, match=r"t.json does not exist; run dvc repro prepare"):
        bpe.load(tmp_path / "t.json")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "t.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"t.json is not a tokenizer \(.*\); run dvc repro prepare"):
        bpe.load(tmp_path / "t.json")


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=r"t.json is not a tokenizer \(.*\); run dvc repro prepare"):
        bpe.load(tmp_path / "t.json")


def test_an_id_in_a_gap_and_one_beyond_have_no_token():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 3, "<end>": 5}, unk_token="a"))
    encoding = bpe.Encoding(tokenizer, {"end": "<end>"})
    assert encoding.known.tolist() == [True, False, False, True, False, True] and encoding.size == 6
