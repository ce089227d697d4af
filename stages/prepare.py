"""prepare: raw corpus -> tokenised examples, split deterministically."""

from pathlib import Path

from components.ranges import Seed
from pipeline.corpora import prepared
from pipeline.corpora.corpus import Corpus
from pipeline.text.rendering import rendering_of


def run(*, out: str, corpus: Corpus, seed: Seed) -> None:
    """Write ``out`` with one file per split and a manifest.

    Args:
        out: folder of the prepared data.
        corpus: where the examples come from.
        seed: of whatever the corpus draws.

    Raises:
        DataError: no later stage knows the corpus' rendering.
    """
    vocabulary, splits, source = corpus.prepare(seed, Path(out))
    rendering_of(vocabulary.rendering)
    prepared.write(Path(out), vocabulary, splits, source)
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    print(f"prepare: {counts}; {vocabulary.size} token ids, sequences of {vocabulary.sequence}")
