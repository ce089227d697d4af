"""What a corpus must offer to be prepared: the protocol that corpora of one's own fill in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.corpora.prepared import Split, Vocabulary


class Corpus(Protocol):
    """Interface of everything that ``prepare`` can turn into examples.

    ``shape``: token ids and sequence length, known before anything is read. ``prepare``: vocabulary, splits, and the hashes of what
    was read. ``causal``: see ``Vocabulary``. ``raw_files``: names of the files that ``prepare`` reads, relative to the raw folder;
    when one of them changes, DVC prepares again. A corpus may also have ``split_names()``: the splits that ``prepare`` will give,
    so that configure can tell of a measure on another one; ``training_examples()``: how many there will be at most (None = nobody
    knows yet), so that it can tell of a batch that is larger; and ``is_text = False`` where answers are no text, so that it can
    tell of settings that judge text.
    """

    @property
    def causal(self) -> bool: ...

    def shape(self) -> tuple[int, int]: ...

    def raw_files(self) -> Sequence[str]: ...

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]: ...
