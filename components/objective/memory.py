"""What training keeps of a supervised step until its backward pass. Values and gradients are the same, bit for bit.

| policy | keeps | costs |
|---|---|---|
| store | the graph of every step | nothing more: as few operations as the gradient needs |
| recompute | what the step started from: its carry | the step's forward once more; the loss is computed once, in the second |

With one-step gradients (``recursion.one_step_gradient``) a step's graph goes as soon as the step is done: constant memory without
recomputation, for another gradient.
"""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from components.recursion import State

Segment = Callable[[bool], tuple[Tensor, State]]  # with its loss (True), or with a placeholder of the same graph (False)
Memory = Callable[[Segment], tuple[Tensor, State]]


def store(segment: Segment) -> tuple[Tensor, State]:
    """Run it, keep its graph."""
    return segment(True)


def recompute(segment: Segment) -> tuple[Tensor, State]:
    """Run it without its loss and drop the graph; the backward pass runs it again, with the loss.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
    """
    passes = iter((False, True))
    found: tuple[Tensor, State] = checkpoint(lambda: segment(next(passes)), use_reentrant=False, early_stop=False)
    return found
