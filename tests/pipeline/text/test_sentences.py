"""Documents as sequences of sentences: how they are split, numbered and cut into examples, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpora.prepared import Prepared, texts, write
from pipeline.errors import ConfigError, DataError
from pipeline.text.sentences import Documents, sentences

LINES = [{"question": f"A is {i}. B is <<2*{i}={2 * i}>>{2 * i}!", "answer": f"So C is {3 * i}.\n#### {3 * i}"} for i in range(40)]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    for name, lines in (("train", LINES[:30]), ("test", LINES[30:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def documents(**settings):
    defaults = {
        "train": "train.jsonl",
        "test": "test.jsonl",
        "download": "x",
        "remove": "<<.*?>>",
        "sequence": 6,
        "validation": 0.2,
    }
    return Documents(**{**defaults, **settings})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs $2.50 each.", ["It costs $2.50 each."]),
        ("Mr. and Mrs. Fox met Dr. No. in St. Ives vs. Rome.", ["Mr. and Mrs. Fox met Dr. No.", "in St. Ives vs. Rome."]),
        ('He said "Go." Then he went.', ['He said "Go."', "Then he went."]),
        ("\n a line \n\n#### 7\n", ["a line", "#### 7"]),
        ("  ", []),
    ],
)
def test_sentences_end_where_they_end(text, expected):
    assert sentences(text) == expected


@given(st.text())
def test_splitting_loses_white_space_alone(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert all(s == s.strip() and s for s in sentences(text))


def test_an_example_is_a_document_whose_first_sentence_is_given(raw):
    vocabulary, splits, source = documents().prepare(0, raw / "out")
    write(raw / "out", vocabulary, splits, source)
    held = texts(raw / "out")
    assert vocabulary.size == len(held) + 2 and (vocabulary.mask_id, vocabulary.pad_id) == (len(held), len(held) + 1)
    assert vocabulary.causal and vocabulary.sequence == 6 and Prepared(raw / "out").vocabulary == vocabulary
    found = []
    for name in ("train", "validation"):
        split = Prepared(raw / "out").split(name)
        for ids, asked, length in zip(split.tokens.tolist(), split.response.tolist(), split.lengths().tolist(), strict=True):
            assert set(ids[length:]) == {vocabulary.pad_id} and asked == [0 < place < length for place in range(6)]
            found.append([held[i] for i in ids[:length]])
    assert sorted(found) == sorted([f"A is {i}.", f"B is {2 * i}!", f"So C is {3 * i}.", f"#### {3 * i}"] for i in range(30))


def test_documents_stay_together_and_splits_apart(raw):
    _, splits, _ = documents().prepare(0, raw / "out")
    groups = [set(split.group.tolist()) for split in splits.values()]
    assert list(splits) == ["train", "validation", "test"] and sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert 1 <= len(groups[1]) <= 15 and len(groups[2]) == 10
    assert [len(split) for split in splits.values()] == [len(group) for group in groups]


def test_the_same_text_gives_the_same_files(raw):
    first, second = ((raw / "out" / n) for n in "ab")
    for folder in (first, second):
        vocabulary, splits, source = documents().prepare(0, folder)
        write(folder, vocabulary, splits, source)
    assert all((second / file.name).read_bytes() == file.read_bytes() for file in first.iterdir())


def test_settings_do_what_they_say(raw):
    few = documents(train_documents=10, test_documents=2).prepare(0, raw / "few")[1]
    assert len(few["train"]) + len(few["validation"]) == 10 and len(few["test"]) == 2
    with_annotations = documents(remove="").prepare(0, raw / "all")
    assert any("<<" in text for text in texts(raw / "all")) and with_annotations[0].sequence == 6
    answers = documents(text="{answer}", sequence=2).prepare(0, raw / "answers")
    assert answers[0].sequence == 2 == documents(sequence=2).shape()[1] and answers[1]["test"].lengths().tolist() == [2] * 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sequence": 1}, "sequence must be at least 2, got 1"), ({"remove": "("}, "remove is no regular expression")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        documents(**settings).shape()


def test_a_document_of_one_sentence_is_refused_with_its_line(raw):
    (raw / "test.jsonl").write_text('{"question": "One.", "answer": "Two."}\n{"question": "A", "answer": "<<1>>"}\n')
    with pytest.raises(DataError, match=r"test.jsonl:2: 1 sentences; a document needs two"):
        documents().prepare(0, raw / "out")


def test_a_document_that_is_too_long_is_refused_with_its_line(raw):
    with pytest.raises(DataError, match=r"train.jsonl:1: 4 sentences; raise sentences.Documents.sequence \(3\)"):
        documents(sequence=3).prepare(0, raw / "out")


def test_more_sentences_than_there_are_ids_are_refused(raw, monkeypatch):
    monkeypatch.setattr("pipeline.text.sentences.MOST", 5)
    with pytest.raises(DataError, match=r"distinct sentences, at most 5 fit; take fewer documents"):
        documents().prepare(0, raw / "out")


def test_texts_that_are_not_there_name_the_stage(tmp_path):
    with pytest.raises(DataError, match=r"sentences.jsonl does not exist; .*dvc repro prepare"):
        texts(tmp_path)
