"""Embeddings of one's own, as a preset: refined where they are, with the settings of preset concepts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from pipeline.errors import DataError
from pipeline.planning.preset_text import PresetText
from pipeline.planning.proposed_sizes import Pace, buckets_for, quantile, test_share, validation_share
from pipeline.settings.effective import Source
from pipeline.text.embeddings import Embeddings
from pipeline.text.raw_files import raw_name
from pipeline.text.vector_files import SUFFIXES, Vectors, read_vectors

PACE = Pace(4096, 32, 3.0, 100, 2000, 0.0, 0, 0)  # concepts: three epochs of 32 sequences a step
CORPUS = "embeddings.Embeddings"
HEADS = (8, 6, 5, 4, 3, 2)  # of the refiner: the most that divide the width and leave 16 channels and more


@dataclass(frozen=True)
class OwnEmbeddings:
    """Sequences of vectors that a preset is proposed for.

    Attributes:
        corpus: as they are read.
        lengths: vectors of each training example.
        seen: what was seen, in lines for a person.
    """

    corpus: Embeddings
    lengths: Sequence[int]
    seen: Sequence[str]

    @property
    def batch(self) -> int:
        """Examples of a step that the rule proposes."""
        return PACE.batch(self.corpus.sequence, len(self.lengths))

    def preset(self, batch: int, made_by: str) -> PresetText:
        """Write the preset, for steps of ``batch`` examples."""
        corpus, steps = self.corpus, PACE.steps(batch, len(self.lengths))
        header = [
            f"Embeddings of {Path(corpus.train).name!r}: {len(self.lengths):,} sequences to learn from, width {corpus.dim}; the "
            "next vector from those before it, refined in embedding space from a ridge regression. Headline: cosine to it.",
            f"Made by: python -m stages new {made_by}",
            f"Run: dvc exp run -S preset={made_by.split()[0]}. Result: not run yet. Learning rate and refiner are those of "
            "concepts, measured on sentences. Commonly overridden: WARMUP_STEPS, WARMUP_LR, LOSS = @losses.cosine_distance.",
        ]
        off, whole = Source("@loop.as_it_is"), Source("@masking.whole")
        given: dict[str, object] = {"CORPUS": Source(f"@{CORPUS}()")}
        given |= {
            f"{CORPUS}.{name}": getattr(corpus, name) for name in ("train", "test", "dim", "sequence", "validation", "distinct")
        }
        given |= {
            "BACKBONE": Source("@embedding_table.model"), "embedding_table.model.prepared": "data/prepared",
            "embedding_table.model.dim": corpus.dim, "BACKBONE_FIT": off, "BACKBONE_TRAINS": [], "JOINT_FIT": off,
            "CONTROL_FIT": off, "JOINT_TRAINS": ["refiner"], "LOSS": Source("@losses.squared_error"), "HEADS": heads_of(corpus.dim),
            "refiner.SlotRefiner.delta_ratio": 2, "refiner.SlotRefiner.update": Source("@delta.RmsScaled()"), "ROTARY": True,
            "TAIL_LAYERS": 0, "DRAWS": 1, "BUCKETS": buckets_for(self.lengths, corpus.sequence), "MASKING": whole,
            "BACKBONE_MASKING": whole, "BATCH": batch, "BACKBONE_BATCH": batch, "EXTRACT_BATCH": 8 * batch,
            "EVALUATION_BATCH": 4 * batch, "WARMUP_STEPS": steps, "WARMUP_LR": 2e-3, "VALIDATE_EVERY": max(steps // 6, 1),
            "MEASURES": {"next": ("test", 1.0)}, "DECODES": {}, "HALTS": {}, "HEADLINE": "next",
        }  # fmt: skip
        imports = [
            "components.objective.losses", "components.objective.masking", "components.refiners.delta",
            "components.refiners.refiner", "pipeline.training.loop", "pipeline.models.embedding_table", "pipeline.text.embeddings",
        ]  # fmt: skip
        return PresetText(header, imports, "defaults", list(given.items()))


def heads_of(dim: int) -> int:
    """Choose the refiner's heads: the most of 8 that divide the width and leave each 16 channels or more, else one.

    >>> heads_of(384), heads_of(768), heads_of(30), heads_of(37)
    (8, 8, 1, 1)
    """
    return next((heads for heads in HEADS if dim % heads == 0 and dim // heads >= 16), 1)


def files_of(folder: Path) -> tuple[Path, Path | None]:
    """Find the files of a folder's splits: train.npy or train.safetensors, and test likewise, if there is one.

    Raises:
        DataError: there is no training file, or several.
    """
    files = {name: [folder / f"{name}{suffix}" for suffix in SUFFIXES] for name in ("train", "test")}
    present = {name: [path for path in paths if path.is_file()] for name, paths in files.items()}
    if len(present["train"]) != 1 or len(present["test"]) > 1:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} holds {names}; expected train.npy or train.safetensors, and test likewise or none")
    return present["train"][0], next(iter(present["test"]), None)


def own_embeddings(train: Path, test: Path | None) -> OwnEmbeddings:
    """Look at embeddings, and propose how they are read.

    Args:
        train: training file, or a folder that holds it and perhaps a test file.
        test: test file; None = that of the folder, or a share of the training file.

    Raises:
        DataError: a file is missing or malformed, of another width than the other, or has too few examples.
    """
    if train.is_dir():
        train, beside = files_of(train)
        test = test or beside
    files = {path: read_vectors(path) for path in (train, test) if path is not None}
    widths = {path: vectors.values.shape[2] for path, vectors in files.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"embeddings are of one width, got {' and '.join(f'{width} ({path})' for path, width in widths.items())}")
    sequence = max(int(vectors.lengths.max()) for vectors in files.values())
    distinct = len({_digest(vector) for vectors in files.values() for row in vectors.values for vector in row})
    corpus = Embeddings(raw_name(train), raw_name(test) if test else 0.5, widths[train], sequence, distinct=distinct)
    keys = [row[0].numpy().tobytes().hex() for row in files[train].values]

    def is_test(key: str, share: float) -> bool:
        return replace(corpus, test=share).split_of(key) == "test"

    def is_validation(key: str, share: float) -> bool:
        return replace(corpus, validation=share).split_of(key) == "validation"

    if test is None:
        corpus = replace(corpus, test=test_share(keys, is_test))
    left = [key for key in keys if corpus.split_of(key) != "test"]
    corpus = replace(corpus, validation=validation_share(left, is_validation))
    learned = [length for key, length in zip(keys, files[train].lengths.tolist(), strict=True) if corpus.split_of(key) == "train"]
    seen = [_in_words(path, vectors) for path, vectors in files.items()]
    names = [corpus.split_of(key) for key in keys] + ["test"] * (len(files[test].values) if test else 0)
    counts = ", ".join(f"{name} {names.count(name):,}" for name in ("train", "validation", "test"))
    return OwnEmbeddings(corpus, learned, [*seen, f"splits: {counts}, by a hash of the first vector"])


def _in_words(path: Path, vectors: Vectors) -> str:
    lengths = vectors.lengths.tolist()
    norms = vectors.values[:, 0].norm(dim=-1)
    again = len(lengths) - len({_digest(row) for row in vectors.values})
    sizes = f"{min(lengths)} to {max(lengths)} vectors (half {quantile(lengths, 0.5)} at most), width {vectors.values.shape[2]}"
    scale = f"norms of first vectors {float(norms.min()):.3g} to {float(norms.max()):.3g}"
    return f"{path}: {len(lengths):,} sequences of {sizes}; {scale}; {again:,} stand there before"


def _digest(vectors: Tensor) -> bytes:
    """What tells vectors from others: a few bytes of each are held, not all of a large file once more."""
    return hashlib.blake2b(vectors.numpy().tobytes(), digest_size=16).digest()
