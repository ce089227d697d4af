"""A corpus of embeddings: examples, the table of vectors beside them, and splits that no input crosses."""

import numpy as np
import pytest
import torch

from pipeline.corpora.prepared import Prepared, texts, write
from pipeline.errors import ConfigError, DataError
from pipeline.tensor_files import read_tensors
from pipeline.text.embeddings import Embeddings

VALUES = np.random.default_rng(0).normal(size=(60, 3, 4)).astype(np.float32)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    np.save(tmp_path / "train.npy", VALUES)
    np.save(tmp_path / "test.npy", VALUES[:5] + 1)
    return tmp_path


def corpus(**changes):
    return Embeddings(**{"train": "train.npy", "test": "test.npy", "dim": 4, "sequence": 3, "validation": 0.2, **changes})


def rows(raw, **changes):
    """The vectors of every example, by split, as a reader finds them."""
    vocabulary, splits, source = corpus(**changes).prepare(0, raw / "out")
    write(raw / "out", vocabulary, splits, source)
    prepared, table = Prepared(raw / "out"), read_tensors(raw / "out/embeddings.safetensors")["embeddings"]
    assert table.shape == (vocabulary.size - 2, 4) and len(texts(raw / "out")) == len(table)
    return {name: table[prepared.split(name).tokens.long()] for name in prepared.manifest["splits"]}


def test_every_vector_comes_back_in_the_split_of_its_file(raw):
    made = rows(raw)
    assert torch.equal(made["test"], torch.from_numpy(VALUES[:5] + 1))
    learned = torch.cat([made["train"], made["validation"]]).flatten(1)
    assert sorted(learned.tolist()) == sorted(VALUES.reshape(60, -1).tolist()) and 2 < len(made["validation"]) < 30


def test_equal_inputs_are_on_one_side_and_equal_vectors_one_id(raw):
    others = VALUES.copy()
    others[:, 1:] += 1
    np.save(raw / "train.npy", np.concatenate([VALUES, others]))
    made = rows(raw, test=0.2)
    firsts = {name: {tuple(row) for row in part[:, 0].tolist()} for name, part in made.items()}
    assert not firsts["train"] & firsts["test"] and not firsts["train"] & firsts["validation"]
    assert sum(len(part) for part in made.values()) == 120 and len(texts(raw / "out")) == 60 * 5


def test_every_vector_but_the_first_is_to_be_predicted_and_named_by_its_place(raw):
    _, splits, source = corpus().prepare(0, raw / "out")
    assert splits["train"].response[0].tolist() == [False, True, True] and source.keys() == {"train.npy", "test.npy"}
    assert texts(raw / "out")[:4] == ["train.npy[0, 0]", "train.npy[0, 1]", "train.npy[0, 2]", "train.npy[1, 0]"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 5}, r"train.npy holds vectors of width 4, up to 3 an example; Embeddings.dim is 5, .sequence 3"),
        ({"sequence": 2}, r"up to 3 an example; Embeddings.dim is 4, .sequence 2"),
        ({"distinct": 100}, r"195 different vectors; Embeddings.distinct is 100: raise it"),
        ({"validation": 1e-9}, "no examples are left for split 'validation'"),
        ({"train": "none.npy"}, "none.npy does not exist"),
    ],
)
def test_what_does_not_fit_the_settings_is_refused(raw, changes, message):
    with pytest.raises(DataError, match=message):
        corpus(**changes).prepare(0, raw / "out")


@pytest.mark.parametrize("share", [0.0, 1.0, 3])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match=f"^Embeddings.test must be a file, or a share between 0 and 1, got {share}$"):
        corpus(test=share).shape()
