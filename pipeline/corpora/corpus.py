"""What a corpus is: the interface that the owner of another one implements."""

from pathlib import Path
from typing import Protocol

from pipeline.corpora.prepared import Split, Vocabulary


class Corpus(Protocol):
    """What can be prepared.

    ``shape``: token ids and sequence length, known before anything is read. ``prepare``: vocabulary, splits, and the hashes of what
    was read. ``causal``: see ``Vocabulary``.
    """

    @property
    def causal(self) -> bool: ...

    def shape(self) -> tuple[int, int]: ...

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]: ...
