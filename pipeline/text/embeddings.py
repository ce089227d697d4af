"""Embeddings from files as a corpus: every vector of a sequence but its first is to be predicted from those before it.

A vector is an id, as a sentence is in ``pipeline.text.sentences``; the table of vectors lies beside the examples, and instead of a
sentence stands where the vector comes from.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from components.ranges import InnerShare, PositiveInt, Range
from pipeline.corpora.prepared import EMBEDDINGS, SENTENCES, Split, Vocabulary
from pipeline.errors import ConfigError, DataError
from pipeline.files import sha256, write_atomic
from pipeline.tensor_files import write_tensors
from pipeline.text.jsonl import held_out
from pipeline.text.raw_files import raw_folder
from pipeline.text.sentences import MOST, examples
from pipeline.text.vector_files import Vectors, read_vectors


@dataclass(frozen=True)
class Embeddings:
    """A corpus of sequences of vectors.

    Args:
        train: training file, relative to the raw folder (``pipeline.text.vector_files`` says what it holds).
        test: test file, or the fraction of the training examples that is held out for it, by a hash of their first vector.
        dim: width of a vector.
        sequence: vectors of an example, at most.
        validation: fraction of the training examples kept for validation, chosen likewise.
        distinct: different vectors of all files, at most.
    """

    causal = True  # a setting of other corpora
    is_text = False  # what is predicted is an embedding

    train: str
    test: str | InnerShare
    dim: PositiveInt
    sequence: Annotated[int, Range(ge=2)] = 2
    validation: InnerShare = 0.05
    distinct: PositiveInt = MOST

    def shape(self) -> tuple[int, int]:
        """Ids at most (there are fewer), and vectors of an example.

        Raises:
            ConfigError: ``test`` is no share.
        """
        if not isinstance(self.test, str) and not 0 < self.test < 1:
            raise ConfigError(f"Embeddings.test must be a file, or a share between 0 and 1, got {self.test}")
        return self.distinct + 2, self.sequence

    def raw_files(self) -> tuple[str, ...]:
        """Name the files that are read, relative to the raw folder."""
        return (self.train, self.test) if isinstance(self.test, str) else (self.train,)

    def split_names(self) -> tuple[str, ...]:
        """Name the splits that are prepared."""
        return "train", "validation", "test"

    def read(self, name: str) -> Vectors:
        """Read one of the files, and compare it with the settings.

        Raises:
            DataError: it is no file of embeddings, or of other sizes.
        """
        path = raw_folder() / name
        vectors = read_vectors(path)
        longest, dim = int(vectors.lengths.max()), vectors.values.shape[2]
        if longest > self.sequence or dim != self.dim:
            raise DataError(
                f"{path} holds vectors of width {dim}, up to {longest} an example; Embeddings.dim is {self.dim}, .sequence "
                f"{self.sequence}"
            )
        return vectors

    def split_of(self, key: str) -> str:
        """Choose the split of an example of the training file by its first vector."""
        if not isinstance(self.test, str) and held_out(f"test/{key}", self.test):
            return "test"
        return "validation" if held_out(key, self.validation) else "train"

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]:
        """Number the vectors in order of appearance, equal ones once, and write them beside the examples.

        Raises:
            DataError: a file is missing or malformed, there are too many vectors, or no example is left for a split.
        """
        ids, names = dict[bytes, int](), list[str]()
        parts: dict[str, list[list[int]]] = {"train": [], "validation": [], "test": []}
        for file in self.raw_files():
            vectors = self.read(file)
            for number, (row, length) in enumerate(zip(vectors.values, vectors.lengths.tolist(), strict=True)):
                keys = [bytes(vector.numpy().tobytes()) for vector in row[:length]]
                for place, key in enumerate(keys):
                    if ids.setdefault(key, len(ids)) == len(names):
                        names.append(f"{Path(file).name}[{number}, {place}]")
                split = self.split_of(keys[0].hex()) if file == self.train else "test"
                parts[split].append([ids[key] for key in keys])
        where = raw_folder() / self.train
        if len(ids) > self.distinct:
            raise DataError(f"{where}: {len(ids):,} different vectors; Embeddings.distinct is {self.distinct:,}: raise it")
        if empty := [name for name, documents in parts.items() if not documents]:
            raise DataError(f"{where}: no examples are left for split '{empty[0]}'; give Embeddings more of them")
        table = torch.frombuffer(bytearray(b"".join(ids)), dtype=torch.float32).view(len(ids), self.dim)
        write_tensors(out / EMBEDDINGS, {"embeddings": table})
        write_atomic(out / SENTENCES, "".join(json.dumps(name) + "\n" for name in names).encode())
        vocabulary = Vocabulary(len(ids) + 2, len(ids), len(ids) + 1, self.sequence, "sentences", causal=True)
        splits, first = {}, 0
        for name, documents in parts.items():
            splits[name] = examples(documents, vocabulary, first)
            first += len(documents)
        return vocabulary, splits, {name: sha256(raw_folder() / name) for name in self.raw_files()}
