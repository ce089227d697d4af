"""What training keeps of a supervised step until its backward pass. Values and gradients are the same, bit for bit.

| policy | keeps | costs |
|---|---|---|
| keep | the graph of every step | nothing more: as few operations as the gradient needs |
| checkpoint | what the step started from: its carry | the step's forward once more; the loss is computed once, in the second |

With one-step gradients (``recursion.one_step_gradient``) a step's graph goes as soon as the step is done: constant memory without
recomputation, for another gradient.
"""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from components.recursion import State

RunStep = Callable[[bool], tuple[Tensor, State]]  # with its loss (True), or with a placeholder of the same graph (False)
Activations = Callable[[RunStep], tuple[Tensor, State]]


def keep(step: RunStep) -> tuple[Tensor, State]:
    """Run a step and keep its graph."""
    return step(True)


def checkpoint(step: RunStep) -> tuple[Tensor, State]:
    """Run a step without its loss and drop the graph; the backward pass runs it again, with the loss.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
    """
    passes = iter((False, True))
    outcome: tuple[Tensor, State] = checkpointed(lambda: step(next(passes)), use_reentrant=False, early_stop=False)
    return outcome
