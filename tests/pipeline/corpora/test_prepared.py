"""Prepared examples on disk: exact round trips, the same bytes twice, and what is refused."""

import pytest
import torch

from pipeline.corpora.prepared import BESIDE, Prepared, Split, Vocabulary, write
from pipeline.errors import DataError
from pipeline.manifests import write_manifest

VOCABULARY = Vocabulary(size=9, mask_id=8, pad_id=7, sequence=5, rendering="text")


def make(n, seed=0, padded=False):
    generator = torch.Generator().manual_seed(seed)
    response = torch.zeros(n, 5, dtype=torch.bool)
    response[:, 2:4] = True
    valid = torch.arange(5).expand(n, 5) < 4 if padded else None
    tokens = torch.randint(7, (n, 5), generator=generator, dtype=torch.int32)
    difficulty = torch.arange(2 * n, dtype=torch.int32).reshape(n, 2) if padded else None
    return Split(tokens=tokens, response=response, group=torch.arange(n) // 2, valid=valid, difficulty=difficulty)


def splits(padded=False):
    return {"train": make(6, 1, padded), "validation": make(3, 2, padded), "test": make(4, 3, padded)}


@pytest.mark.parametrize("padded", [False, True])
def test_what_is_read_is_what_was_written(tmp_path, padded):
    written = splits(padded)
    write(tmp_path, VOCABULARY, written, {"raw": "abc"})
    opened = Prepared(tmp_path)
    assert opened.vocabulary == VOCABULARY and opened.manifest["source"] == {"raw": "abc"}
    for name, split in written.items():
        read = opened.split(name)
        assert len(read) == len(split) == opened.manifest["splits"][name]["examples"]
        assert torch.equal(read.tokens, split.tokens) and torch.equal(read.response, split.response)
        assert torch.equal(read.group, split.group)
        assert torch.equal(read.valid, split.valid) if padded else read.valid is None
        assert torch.equal(read.difficulty, split.difficulty) if padded else read.difficulty is None


def test_every_row_has_an_identity_of_its_own(tmp_path):
    write(tmp_path, VOCABULARY, splits(), {})
    uids = torch.cat([Prepared(tmp_path).split(name).uid for name in ("train", "validation", "test")])
    assert uids.tolist() == list(range(13))


def test_the_same_examples_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, VOCABULARY, splits(True), {"raw": "abc"})
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["manifest.json", "test.safetensors", "train.safetensors", "validation.safetensors"]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_rows_are_taken_from_every_field(tmp_path):
    write(tmp_path, VOCABULARY, splits(True), {})
    split = Prepared(tmp_path).split("train")
    for rows in (torch.tensor([4, 1]), slice(2, 4)):
        taken = split.take(rows)
        for field in ("tokens", "response", "group", "valid", "uid", "difficulty"):
            assert torch.equal(getattr(taken, field), getattr(split, field)[rows])


def test_a_split_without_examples_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"split 'validation' has no examples; give the corpus more data"):
        write(tmp_path, VOCABULARY, {**splits(), "validation": make(0)}, {})


def test_an_example_without_response_is_refused(tmp_path):
    broken = make(6)
    broken.response[4] = False
    with pytest.raises(DataError, match=r"split 'train', example 4: there is no response token to learn"):
        write(tmp_path, VOCABULARY, {"train": broken}, {})


def test_nothing_can_be_opened_after_a_refused_write(tmp_path):
    with pytest.raises(DataError, match="split 'test' has no examples"):
        write(tmp_path, VOCABULARY, {**splits(), "test": make(0)}, {})
    with pytest.raises(DataError, match=r"manifest.json does not exist; it is written by stage prepare: run dvc repro prepare"):
        Prepared(tmp_path)


def test_an_unknown_split_names_the_known_ones(tmp_path):
    write(tmp_path, VOCABULARY, splits(), {})
    with pytest.raises(DataError, match=r"has no split 'dev'; it has test, train, validation"):
        Prepared(tmp_path).split("dev")


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_flipped_byte_is_found(tmp_path, position):
    write(tmp_path, VOCABULARY, splits(), {})
    file = tmp_path / "train.safetensors"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train.safetensors is damaged: .* run dvc repro prepare"):
        Prepared(tmp_path).split("train")
    assert len(Prepared(tmp_path).split("test")) == 4  # the others are as they were


@pytest.mark.parametrize("name", BESIDE)
def test_what_a_corpus_leaves_beside_its_splits_is_covered_too(tmp_path, name):
    (tmp_path / name).write_text("{}")
    write(tmp_path, VOCABULARY, splits(), {})
    first = Prepared(tmp_path).digest
    (tmp_path / name).write_text("{ }")
    with pytest.raises(DataError, match=rf"{name} is damaged: .* run dvc repro prepare"):
        Prepared(tmp_path)
    write(tmp_path, VOCABULARY, splits(), {})
    assert Prepared(tmp_path).digest != first


def test_a_manifest_of_another_stage_is_refused(tmp_path):
    write(tmp_path, VOCABULARY, splits(), {})
    write_manifest(tmp_path / "manifest.json", {**Prepared(tmp_path).manifest, "stage": "evaluate"})
    with pytest.raises(DataError, match="is what evaluate wrote, expected what prepare writes; run dvc repro prepare"):
        Prepared(tmp_path)


def test_a_lost_file_is_found(tmp_path):
    write(tmp_path, VOCABULARY, splits(), {})
    (tmp_path / "train.safetensors").unlink()
    with pytest.raises(DataError, match=r"train.safetensors is listed in the manifest but does not exist; run dvc repro prepare"):
        Prepared(tmp_path).split("train")
