"""Embeddings that prepare has read from files as a frozen backbone: the table of sentences, filled without an encoder."""

from pathlib import Path

import torch

from components.backbones.sentence_table import SentenceTable
from components.ranges import PositiveInt
from pipeline.corpora.prepared import EMBEDDINGS, SENTENCES, Prepared
from pipeline.errors import DataError
from pipeline.files import absence, sha256
from pipeline.models.sentence_encoder import regressed
from pipeline.tensor_files import read_tensors


def model(vocab: int, seq: int, *, prepared: str, dim: PositiveInt) -> SentenceTable:
    """A table of embeddings as ``backbone.run.model``; on the meta device its shapes alone.

    Args:
        vocab, seq: of the prepared data.
        prepared: its folder.
        dim: width of an embedding.

    Raises:
        DataError: the folder holds no embeddings, or of another width or number.
    """
    table, file = SentenceTable(vocab, seq, dim), Path(prepared) / EMBEDDINGS
    if torch.get_default_device().type == "meta":
        return table
    if not file.is_file():
        raise DataError(f"{file} {absence(file)}; prepare writes it for a corpus of embeddings: run dvc repro prepare")
    embeddings = read_tensors(file)["embeddings"]
    shape, expected = tuple(embeddings.shape), (vocab - 2, dim)
    if shape != expected:
        raise DataError(f"{file} holds {shape}, expected {expected} (embedding_table.model.dim); run dvc repro prepare")
    splits = [Prepared(prepared).split(name) for name in ("train", "validation")]
    train = splits[0]
    assert train.valid is not None
    table.fill(embeddings, train.tokens[train.valid].unique().long())
    penalty = regressed(table, *splits)
    table.origin = {"embeddings": sha256(file), "sentences": sha256(Path(prepared) / SENTENCES), "penalty": penalty}
    return table
