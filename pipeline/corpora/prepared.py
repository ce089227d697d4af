"""Prepared examples: the tokenised corpus as prepare leaves it and every later stage reads it.

A folder with one safetensors file per split and ``manifest.json`` (vocabulary, counts, hashes of all files).
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.manifests import HASHES, STAGE, Manifest, write_manifest
from pipeline.tensor_files import write_tensors

MANIFEST, SENTENCES = "manifest.json", "sentences.jsonl"  # texts by id, where ids are sentences
EMBEDDINGS = "embeddings.safetensors"  # vectors by id, where ids are vectors of files
BESIDE = (SENTENCES, EMBEDDINGS, "tokenizer.json", "prompt_template.json")  # what a corpus may leave beside its splits


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of a corpus.

    Attributes:
        size: number of ids, mask and padding included.
        mask_id: id that hides a token; if causal, one that no token has (it only shows what is to be predicted).
        pad_id: id of padding (never attended to, never supervised).
        sequence: tokens in a sequence.
        rendering: what the sequences are to a person: "sudoku" (a square grid of digits), "text" (through tokenizer.json
            beside the manifest) or "sentences" (``texts``). What follows from it: ``pipeline.text.rendering``.
        causal: tokens are predicted from those before them; none is hidden.
    """

    size: int
    mask_id: int
    pad_id: int
    sequence: int
    rendering: str
    causal: bool = False


@dataclass(frozen=True)
class Split:
    """Examples of one split: ``n`` rows.

    Attributes:
        tokens: int32 (n, seq), solved.
        response: bool (n, seq), True where a token may be masked.
        group: int64 (n), rows that are not independent of each other share a group (puzzles of one grid).
        valid: bool (n, seq), False at padding; None when nothing is padded.
        several: bool (n), True where other tokens would be as right (puzzles of several solutions); None where none would.
        difficulty: int32 (n, 2), rounds of singles and guesses that a puzzle takes (``pipeline.corpora.solver``); None where the
            corpus does not state it.
        uid: int64 (n), unique over all splits: the key of a row's noise. Set by ``write``.
    """

    tokens: Tensor
    response: Tensor
    group: Tensor
    valid: Tensor | None = None
    several: Tensor | None = None
    uid: Tensor | None = None
    difficulty: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def lengths(self) -> Tensor:
        """Count the tokens of each row, without padding."""
        n, sequence = self.tokens.shape
        return torch.full((n,), sequence) if self.valid is None else self.valid.sum(1)

    def take(self, rows: Tensor | slice) -> "Split":
        """Return a split of the given rows alone."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items() if value is not None})


def write(folder: Path, vocabulary: Vocabulary, splits: dict[str, Split], source: dict[str, str]) -> None:
    """Write every split and the manifest; the same examples give the same bytes.

    Args:
        folder: where to.
        vocabulary: its token ids.
        splits: examples by split name; ``train`` and ``validation`` must be among them.
        source: sha256 of each raw file they came from, by name.

    Raises:
        DataError: a split has no examples, or an example has nothing to supervise.
    """
    entries, hashes, first = {}, {}, 0
    for name, split in splits.items():
        if len(split) == 0:
            raise DataError(f"split '{name}' has no examples; give the corpus more data or other split settings")
        if not bool(split.response.any(1).all()):
            row = int((~split.response.any(1)).nonzero()[0])
            raise DataError(f"split '{name}', example {row}: there is no response token to learn")
        tensors = {"tokens": split.tokens.int(), "response": split.response, "group": split.group.long()}
        if split.valid is not None:
            if not bool((split.valid == (torch.arange(split.valid.shape[1]) < split.lengths()[:, None])).all()):
                raise DataError(f"split '{name}': padding must follow an example's tokens, not precede or interrupt them")
            tensors["valid"] = split.valid
        if split.several is not None:
            tensors["several"] = split.several
        if split.difficulty is not None:
            tensors["difficulty"] = split.difficulty.int()
        tensors["uid"] = torch.arange(first, first + len(split))
        first += len(split)
        write_tensors(folder / f"{name}.safetensors", tensors)
        several = {} if split.several is None else {"several_solutions": int(split.several.sum())}
        entries[name] = {"examples": len(split), **several}
        hashes[f"{name}.safetensors"] = sha256(folder / f"{name}.safetensors")
    hashes |= {name: sha256(folder / name) for name in BESIDE if (folder / name).is_file()}
    content = {STAGE: "prepare", "vocabulary": asdict(vocabulary), "splits": entries, "source": source, HASHES: hashes}
    write_manifest(folder / MANIFEST, content)


class Prepared:
    """Reader of a folder that ``prepare`` has written. Splits are verified when they are read, all other files at once.

    Attributes:
        digest: of the manifest, which stands for every byte of the folder.

    Raises:
        DataError: the folder is missing or incomplete, or is not what was written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = Manifest(self.folder / MANIFEST, "prepare", "prepare")
        self._verify, self.manifest, self.digest = manifest.verify, manifest.content, manifest.digest
        self.vocabulary = Vocabulary(**self.manifest["vocabulary"])
        for name in set(manifest.hashes) & set(BESIDE):
            manifest.verify(name)

    def split(self, name: str) -> Split:
        """Examples of one split, verified against the manifest.

        Raises:
            DataError: no such split, or the file is damaged.
        """
        known = self.manifest["splits"]
        if name not in known:
            raise DataError(f"{self.folder} has no split '{name}'; it has {', '.join(sorted(known))}")
        return Split(**load_file(self._verify(f"{name}.safetensors")))


def texts(folder: Path) -> list[str]:
    """The sentences by id, of a corpus of sentences.

    Raises:
        DataError: the folder holds none.
    """
    file = folder / SENTENCES
    if not file.is_file():
        raise DataError(f"{file} does not exist; prepare writes it for a corpus of sentences: run dvc repro prepare")
    return [json.loads(line) for line in file.read_text().splitlines()]
