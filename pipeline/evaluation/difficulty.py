"""Exact answers by difficulty, where the corpus states it: puzzles in bands of clues, of rounds of singles and of guesses."""

import torch
from torch import Tensor

from components.inference.metrics import SHARE
from pipeline.corpora.prepared import Split
from pipeline.evaluation import evaluator

BANDS = {  # the first number of each band; the last one has no end
    "clues": (0, 20, 24, 28, 32, 36, 40, 48),
    "rounds": (0, 2, 3, 4, 5, 6, 8, 10, 12, 16),
    "guesses": (0, 1, 2, 4, 8, 16),
}


def by_difficulty(exact: Tensor, split: Split) -> dict[str, dict[str, dict[str, float]]]:
    """Average what is exact over the examples of every band that has some; nothing where the corpus states no difficulty.

    Args:
        exact: of each example.
        split: the examples, in the same order.

    Returns:
        By kind (clues, rounds, guesses) and band ("6..7", "16.."): mean with its interval, and n, the examples in it.
    """
    if split.difficulty is None:
        return {}
    clues = (~split.response).sum(1, keepdim=True)
    bands: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, firsts), numbers in zip(BANDS.items(), torch.cat([clues, split.difficulty], 1).T, strict=True):
        places = torch.bucketize(numbers.contiguous(), torch.tensor(firsts), right=True) - 1
        bands[kind] = {
            _name(firsts, place): evaluator.mean(exact[rows], torch.ones_like(exact[rows]), split.group[rows], SHARE)
            for place in places.unique().tolist()
            for rows in [places == place]
        }
    return bands


def _name(firsts: tuple[int, ...], place: int) -> str:
    """A band's numbers, the last included."""
    first = firsts[place]
    if place + 1 == len(firsts):
        return f"{first}.."
    return str(first) if firsts[place + 1] == first + 1 else f"{first}..{firsts[place + 1] - 1}"
