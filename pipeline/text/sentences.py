"""Documents as sequences of sentences: the corpus of models that predict a sentence's embedding from those before it.

A sentence is an id; ``sentences.jsonl`` holds the texts. An example is a document; every sentence but the first is to be predicted
from those before it, as a causal backbone's tokens are: nothing that follows may reach a prediction.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from components.ranges import InnerShare, PositiveInt, Range
from pipeline.corpora.prepared import SENTENCES, Split, Vocabulary
from pipeline.errors import ConfigError, DataError
from pipeline.files import sha256, write_atomic
from pipeline.text.filled_rows import Texts, read_texts
from pipeline.text.jsonl import held_out
from pipeline.text.raw_files import raw_folder

MOST = 1 << 20  # distinct sentences
END = re.compile(  # white space behind a full stop that is not that of a title, with its closing quote or bracket
    r"(?<=[.!?])(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMrs\.)(?<!\bvs\.)\s+|(?<=[.!?][\"')\]])\s+"
)


def sentences(text: str) -> list[str]:
    """Lines, cut at sentence ends.

    >>> sentences('Mr. Fox has 2.5 dollars. "How many?" he asks.\\n2.5 / 2 = 1.25')
    ['Mr. Fox has 2.5 dollars.', '"How many?"', 'he asks.', '2.5 / 2 = 1.25']
    """
    return [sentence for line in text.splitlines() for part in END.split(line) if (sentence := part.strip())]


@dataclass(frozen=True)
class Documents:
    """A corpus of JSON lines, each a document.

    Args:
        train: training file, relative to the raw folder.
        test: test file.
        download: command that fetches the files, shown when they are missing.
        text: template of a document, over a line's fields.
        remove: regular expression of what is taken out before a document is split; "" = nothing.
        sequence: sentences of a document, at most.
        validation: fraction of training documents kept for validation, chosen by a hash of the text.
        train_documents, test_documents: only the first ones of each file; None = all.
    """

    causal = True  # a setting of other corpora
    is_text = False  # what is predicted is an embedding

    train: str
    test: str
    download: str
    text: str = "{question}\n{answer}"
    remove: str = ""
    sequence: Annotated[int, Range(ge=2)] = 48
    validation: InnerShare = 0.05
    train_documents: PositiveInt | None = None
    test_documents: PositiveInt | None = None

    def shape(self) -> tuple[int, int]:
        """Ids at most (there are fewer), and sentences of an example.

        Raises:
            ConfigError: no sentence would precede another, or ``remove`` is no regular expression.
        """
        if self.sequence < 2:
            raise ConfigError(f"sentences.Documents.sequence must be at least 2, got {self.sequence}")
        try:
            re.compile(self.remove)
        except re.error as error:
            raise ConfigError(f"sentences.Documents.remove is no regular expression: {error}") from None
        return MOST + 2, self.sequence

    def raw_files(self) -> tuple[str, str]:
        """Name the files that are read, relative to the raw folder."""
        return self.train, self.test

    def split_names(self) -> tuple[str, ...]:
        """Name the splits that are prepared."""
        return "train", "validation", "test"

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]:
        """Read, split into sentences, and number them in order of appearance.

        Raises:
            DataError: a file is missing, a line is malformed or holds less than two sentences or more than ``sequence``, or there
                are too many.
        """
        self.shape()
        folder = raw_folder()
        train, test = (
            read_texts(folder / name, self.download, [self.text])[:most]
            for name, most in ((self.train, self.train_documents), (self.test, self.test_documents))
        )
        flags = [held_out(document.texts[0], self.validation) for document in train]
        parts = {
            "train": [document for document, out_of in zip(train, flags, strict=True) if not out_of],
            "validation": [document for document, out_of in zip(train, flags, strict=True) if out_of],
            "test": test,
        }
        ids: dict[str, int] = {}
        splits, first = {}, 0
        for name, documents in parts.items():
            numbered = [[ids.setdefault(text, len(ids)) for text in self._split(document)] for document in documents]
            splits[name] = numbered, first
            first += len(documents)
        if len(ids) > MOST:
            raise DataError(f"{folder / self.train}: {len(ids):,} distinct sentences, at most {MOST:,} fit; take fewer documents")
        write_atomic(out / SENTENCES, "".join(json.dumps(text) + "\n" for text in ids).encode())
        vocabulary = Vocabulary(len(ids) + 2, len(ids), len(ids) + 1, self.sequence, "sentences", causal=True)
        encoded = {name: examples(numbered, vocabulary, first) for name, (numbered, first) in splits.items()}
        return vocabulary, encoded, {name: sha256(folder / name) for name in self.raw_files()}

    def _split(self, document: Texts) -> list[str]:
        text = re.sub(self.remove, "", document.texts[0]) if self.remove else document.texts[0]
        if len(parts := sentences(text)) < 2:
            raise DataError(f"{document.origin}: {len(parts)} sentences; a document needs two: one to predict from another")
        if len(parts) > self.sequence:
            raise DataError(f"{document.origin}: {len(parts)} sentences; raise sentences.Documents.sequence ({self.sequence})")
        return parts


def examples(documents: list[list[int]], vocabulary: Vocabulary, first: int) -> Split:
    """A row a document: its first sentence is given, the others are to be predicted.

    Args:
        documents: ids of the sentences of each.
        vocabulary: of the ids.
        first: group of the first document.
    """
    tokens = torch.full((len(documents), vocabulary.sequence), vocabulary.pad_id, dtype=torch.int32)
    for row, ids in enumerate(documents):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
    place = torch.arange(vocabulary.sequence)
    valid = place < torch.tensor([len(ids) for ids in documents])[:, None]
    return Split(tokens, valid & (place > 0), torch.arange(first, first + len(documents)), valid)
