"""Sums whose bits do not depend on who adds what: always the same pairwise tree over the microbatches of an optimizer step.

Floating-point addition is not associative: gradients added up one after another by one process, and in parts by several, differ in
their last bits. A tree over the microbatches gives the same bits for every number of processes that leaves each a power of two.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class PairwiseSum:
    """Adds up lists of tensors as the leaves of a binary tree, holding log2(leaves) + 1 lists at most: the newest leaf, and a sum
    of 1, 2, 4, ... leaves each, in place of its first leaf.

    >>> total = PairwiseSum()
    >>> for x in (1.0, 2.0, 3.0):
    ...     total.add([torch.tensor(x)])
    >>> total.result()
    [tensor(6.)]
    """

    def __init__(self) -> None:
        self._partial: list[tuple[int, list[Tensor]]] = []  # (leaves, sum), fewer and fewer leaves

    def add(self, leaf: Sequence[Tensor]) -> None:
        """Add the next leaf; its tensors may be added to in place."""
        leaves, total = 1, list(leaf)
        while self._partial and self._partial[-1][0] == leaves:
            total = _added(self._partial.pop()[1], total)
            leaves *= 2
        self._partial.append((leaves, total))

    def result(self) -> list[Tensor]:
        """The sum of all leaves. At least one must have been added."""
        _, total = self._partial.pop()
        while self._partial:
            total = _added(self._partial.pop()[1], total)
        return total


def _added(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(a, b)
    return a


def pairwise(parts: Float[Tensor, "parts n"]) -> Float[Tensor, "n"]:
    """The tree's sum over the first dimension."""
    total = PairwiseSum()
    for part in parts.clone():
        total.add([part])
    return total.result()[0]
