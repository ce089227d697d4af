"""What is proposed for embeddings of one's own, against what prepare then makes of them."""

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.planning.dataset_size import expected
from pipeline.planning.own_embeddings import own_embeddings

VALUES = np.random.default_rng(0).normal(size=(200, 3, 32)).astype(np.float32)


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    np.save(tmp_path / "train.npy", VALUES)
    return tmp_path


@pytest.mark.parametrize("with_test", [False, True])
def test_prepare_makes_the_splits_that_were_told(raw, with_test):
    if with_test:
        np.save(raw / "test.npy", VALUES[:9] + 1)
    data = own_embeddings(raw, None)
    vocabulary, splits, _ = data.corpus.prepare(0, raw / "out")
    assert len(splits["train"]) == len(data.lengths) and vocabulary.size == data.corpus.shape()[0]
    told = ", ".join(f"{name} {len(splits[name])}" for name in ("train", "validation", "test"))
    assert data.seen[-1] == f"splits: {told}, by a hash of the first vector"
    assert data.corpus.test == ("test.npy" if with_test else 0.1) and data.corpus.train == "train.npy"
    guess = {name: len(split) for name, split in expected(data.corpus)[0].items()}
    assert sum(guess.values()) == sum(len(split) for split in splits.values())


def test_what_stands_there_twice_is_told(raw):
    np.save(raw / "train.npy", np.concatenate([VALUES, VALUES[:7]]))
    assert own_embeddings(raw / "train.npy", None).seen[0].endswith("7 stand there before")


def test_files_of_other_widths_and_folders_without_files_are_refused(raw):
    np.save(raw / "test.npy", np.ones((3, 2, 16)))
    with pytest.raises(DataError, match=r"embeddings are of one width, got 32 \(.*train.npy\) and 16 \(.*test.npy\)"):
        own_embeddings(raw, None)
    (raw / "none").mkdir()
    with pytest.raises(DataError, match=r"none holds nothing; expected train.npy or train.safetensors"):
        own_embeddings(raw / "none", None)
    (raw / "train.safetensors").write_text("")
    with pytest.raises(DataError, match=r"holds none, test.npy, train.npy, train.safetensors; expected train.npy or"):
        own_embeddings(raw, None)
