"""prepare: raw corpus -> tokenised examples, split deterministically."""

from pathlib import Path
from typing import Protocol

from pipeline.corpora import prepared


class Corpus(Protocol):
    """What can be prepared.

    ``shape``: token ids and sequence length, known before anything is read. ``prepare``: vocabulary, splits, and the hashes of what
    was read. ``causal``: see ``Vocabulary``.
    """

    @property
    def causal(self) -> bool: ...

    def shape(self) -> tuple[int, int]: ...

    def prepare(self, seed: int, out: Path) -> tuple[prepared.Vocabulary, dict[str, prepared.Split], dict[str, str]]: ...


def run(*, out: str, corpus: Corpus, seed: int) -> None:
    """Write ``out`` with one file per split and a manifest.

    Args:
        out: folder of the prepared data.
        corpus: where the examples come from.
        seed: of whatever the corpus draws.
    """
    vocabulary, splits, source = corpus.prepare(seed, Path(out))
    prepared.write(Path(out), vocabulary, splits, source)
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    print(f"prepare: {counts}; {vocabulary.size} token ids, sequences of {vocabulary.sequence}")
