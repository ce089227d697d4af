"""Test splits of a generated corpus that come from files: the public sets that others report on.

What training has seen of them is counted and said: a small puzzle has few grids, and a public set holds most of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from pipeline.corpora.prepared import Split
from pipeline.errors import ConfigError

UNSEEN = "_unseen"  # behind a split's name: those of its puzzles whose solution no training puzzle has


class PuzzleSource(Protocol):
    """Interface of a file of puzzles: ``pipeline.text.puzzle_files.PuzzleFile``."""

    def raw_files(self) -> Sequence[str]:
        """Name the files that are read, relative to the raw folder."""

    def examples(self, size: int, seed: int) -> Split:
        """Read the puzzles, each solved."""

    def clues(self, size: int, seed: int) -> Tensor:
        """Count the clues of each puzzle, which takes no solving."""

    def source(self) -> dict[str, str]:
        """Hash the files that are read, by name."""


def split_names(files: Mapping[str, PuzzleSource], others: Sequence[str]) -> tuple[str, ...]:
    """Name the splits that the files give.

    Raises:
        ConfigError: a name is taken by one of the ``others``.
    """
    names = tuple(name for file in files for name in (file, file + UNSEEN))
    if taken := sorted({*names} & {*others}):
        raise ConfigError(f"Sudoku.further names a split '{taken[0]}', which the corpus makes itself; name it otherwise")
    return names


def further_splits(files: Mapping[str, PuzzleSource], size: int, seed: int, splits: Mapping[str, Split]) -> dict[str, Split]:
    """Read the files, and tell what training has seen of them. ``NAME_unseen`` is left out where training has seen all.

    Args:
        files: by the name of their split.
        size: digits of a puzzle.
        seed: of whatever a file draws.
        splits: of the corpus; rows of one grid keep its group.
    """
    groups = {_key(grid): int(group) for split in splits.values() for grid, group in zip(split.tokens, split.group, strict=True)}
    numbers = count(1 + max(groups.values()))
    targets = {_key(grid) for grid in splits["train"].tokens}
    puzzles = {_key(clues) for clues in _clues(splits["train"])}
    further = {}
    for name, file in files.items():
        examples = file.examples(size, seed)
        keys = [_key(grid) for grid in examples.tokens]
        group = torch.tensor([groups.setdefault(key, next(numbers)) for key in keys])
        unseen = torch.tensor([key not in targets for key in keys])
        further[name] = replace(examples, group=group)
        if unseen.any():
            further[name + UNSEEN] = further[name].take(unseen)
        overlap = sum(_key(clues) in puzzles for clues in _clues(examples))
        print(
            f"prepare: {name}: the solutions of {int((~unseen).sum())} of {len(keys)} puzzles are training targets, the other "
            f"{int(unseen.sum())} are {name}{UNSEEN}; {overlap} of the puzzles themselves are training puzzles"
        )
    return further


def _clues(split: Split) -> Tensor:
    return torch.where(split.response, -1, split.tokens)


def _key(cells: Tensor) -> bytes:
    return cells.to(torch.int8).numpy().tobytes()
