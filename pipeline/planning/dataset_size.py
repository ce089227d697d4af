"""What a corpus will hold, told from its settings before it is prepared: how many examples, how long, how much of each is answer.

Tokens are all 0: what is reckoned from them (bytes, operations) depends on shapes alone.
"""

from functools import singledispatch

import torch
from torch import Tensor

from pipeline.corpora.ambiguous import joined
from pipeline.corpora.corpus import Corpus
from pipeline.corpora.further_tests import UNSEEN
from pipeline.corpora.prepared import Split
from pipeline.corpora.sudoku import Sudoku
from pipeline.errors import ConfigError
from pipeline.text.embeddings import Embeddings
from pipeline.text.jsonl import QuestionAnswers
from pipeline.text.puzzle_files import PuzzleFiles

CHARACTERS = 2.7  # of a token: what 4,096 byte pairs reach on GSM8K; larger vocabularies reach more

Expected = tuple[dict[str, Split], str]  # splits by name, and what of them is a guess ("" = nothing)


@singledispatch
def expected(corpus: Corpus) -> Expected:
    """Splits of the size that ``prepare`` will make them, and in words what of that is assumed.

    Raises:
        ConfigError: nothing is known of a corpus of this kind.
        DataError: its raw files are missing or malformed.
    """
    raise ConfigError(f"how large a {type(corpus).__name__} will be is not known before it is prepared; run: dvc repro prepare")


@expected.register
def _(corpus: Sudoku) -> Expected:
    cells = corpus.shape()[1]

    def split(n: int, clues: tuple[int, int]) -> Split:
        given = clues[0] + torch.arange(n) % (clues[1] - clues[0] + 1)
        return _split(given, torch.full((n,), cells), cells)

    tests = {f"test_{n}": split(corpus.test, (n, n)) for n in corpus.test_clues}
    train = split(corpus.train, corpus.clues)
    if corpus.ambiguous:
        train = joined(train, split(corpus.ambiguous, (cells // 4, cells * 5 // 8)))
    splits = {"train": train, "validation": split(corpus.validation, corpus.clues), **tests}
    for name, file in corpus.further.items():
        clues = file.clues(corpus.size, 0)
        splits |= dict.fromkeys((name, name + UNSEEN), _split(clues, torch.full_like(clues, cells), cells))
    return splits, "every number of clues is as frequent as any other"


@expected.register
def _(corpus: PuzzleFiles) -> Expected:
    cells = corpus.shape()[1]
    counts = {name: file.clues(corpus.size, 0) for name, file in corpus.files().items()}
    for name in ("test", "validation"):
        if not isinstance(share := getattr(corpus, name), str):
            n = round(len(counts["train"]) * share)
            counts[name], counts["train"] = counts["train"][:n], counts["train"][n:]
    splits = {name: _split(clues, torch.full_like(clues, cells), cells) for name, clues in counts.items()}
    return splits, "which puzzles are held out by a share decides a few examples"


@expected.register
def _(corpus: QuestionAnswers) -> Expected:
    sequence = corpus.sequence
    splits: dict[str, Split] = {}
    for name in ("train", "test"):
        pairs = corpus.pairs(name, ())
        prompts, answers = (
            torch.tensor([len(text) / CHARACTERS for text in texts]).ceil().long()
            for texts in ([pair.prompt for pair in pairs], [pair.response for pair in pairs])
        )
        ends = torch.full_like(prompts, sequence) if corpus.padding == "end" else (prompts + answers + 1).clamp_max(sequence)
        splits[name] = _split(prompts, ends, sequence).take(prompts < sequence)
    train = splits.pop("train")
    validation = round(len(train) * corpus.validation)
    parts = {"train": train.take(slice(validation, None)), "validation": train.take(slice(validation)), **splits}
    frame = ", the chat template is left out" if corpus.chat else ""
    return parts, f"a token is {CHARACTERS} characters{frame}; which questions are held out for validation decides a few examples"


@expected.register
def _(corpus: Embeddings) -> Expected:
    files = {name: corpus.read(name) for name in corpus.raw_files()}
    lengths = {"train": files[corpus.train].lengths}
    if isinstance(corpus.test, str):
        lengths["test"] = files[corpus.test].lengths
    for name, share in (("test", corpus.test), ("validation", corpus.validation)):
        if not isinstance(share, str):
            n = round(len(lengths["train"]) * share)
            lengths[name], lengths["train"] = lengths["train"][:n], lengths["train"][n:]
    splits = {name: _split(torch.ones_like(ends), ends, corpus.sequence) for name, ends in lengths.items()}
    return splits, "which examples are held out by a share decides a few"


def _split(begin: Tensor, end: Tensor, sequence: int) -> Split:
    """Examples whose answers reach from ``begin`` to ``end``, where their tokens end."""
    places, n = torch.arange(sequence), len(begin)
    valid = places < end[:, None]
    return Split(
        tokens=torch.zeros(n, sequence, dtype=torch.int32), response=(places >= begin[:, None]) & valid, group=torch.arange(n),
        valid=None if bool(valid.all()) else valid, uid=torch.arange(n),
    )  # fmt: skip
