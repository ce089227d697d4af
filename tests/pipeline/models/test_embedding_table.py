"""A table of embeddings from files as a backbone: what it holds, and what it refuses."""

import numpy as np
import pytest
import torch

from pipeline.corpora.prepared import EMBEDDINGS, write
from pipeline.errors import DataError
from pipeline.models.embedding_table import model
from pipeline.text.embeddings import Embeddings

VALUES = np.random.default_rng(0).normal(size=(80, 3, 4)).astype(np.float32)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    np.save(tmp_path / "train.npy", VALUES)
    vocabulary, splits, source = Embeddings("train.npy", 0.2, 4, 3, 0.2).prepare(0, tmp_path / "out")
    write(tmp_path / "out", vocabulary, splits, source)
    return tmp_path / "out", vocabulary


def test_rows_are_the_normalised_vectors_and_raw_gives_them_back(prepared):
    folder, vocabulary = prepared
    table = model(vocabulary.size, 3, prepared=str(folder), dim=4)
    torch.testing.assert_close(table.raw(table.head.weight[:-2]), torch.from_numpy(VALUES.reshape(-1, 4)), rtol=1e-4, atol=1e-5)
    assert not table.head.weight[-2:].any() and table.weight.any() and table.origin["penalty"] > 0


def test_on_shapes_nothing_is_read():
    with torch.device("meta"):
        assert model(12, 3, prepared="nowhere", dim=4).head.weight.shape == (12, 4)


def test_a_folder_without_its_vectors_is_refused(prepared):
    folder, vocabulary = prepared
    with pytest.raises(DataError, match=r"holds \(240, 4\), expected \(240, 5\) \(embedding_table.model.dim\); run dvc"):
        model(vocabulary.size, 3, prepared=str(folder), dim=5)
    (folder / EMBEDDINGS).unlink()
    with pytest.raises(DataError, match=r"embeddings.safetensors does not exist; prepare writes it"):
        model(vocabulary.size, 3, prepared=str(folder), dim=4)
