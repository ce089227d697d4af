"""prepare: raw corpus -> tokenised examples, split deterministically."""

from pathlib import Path

from pipeline.corpora import prepared
from pipeline.corpora.corpus import Corpus


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
