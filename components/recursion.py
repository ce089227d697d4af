"""The recursion: what one supervised step leaves, and how far back a loss may send its gradient.

A recursion of K steps is cut into the *segments* of truncated backpropagation through time (BPTT): within one, the gradient of a
late step flows through all earlier ones; between two, the states are detached. Where the cuts lie never changes a value, only the
gradient, and with it what must be kept in memory: the graph of one segment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components import noise
from components.ranges import PositiveInt

Tree = Mapping[str, Any]  # tensors by name, or trees of them; every tensor has the batch as its first dimension


@dataclass(frozen=True)
class State:
    """What one supervised step leaves.

    Attributes:
        hidden: the refined hidden states; the readout maps them to logits.
        carry: what the next step starts from, nothing else is handed on.
        statistics: 0-d tensors on the device of the step (slot norms, gates, ...); empty unless asked for.
        penalty: 0-d tensor to add to this step's loss; None unless the model has one.
        halt: logit of "this sequence is right, stop here"; None unless the model learns when to halt.
    """

    hidden: Float[Tensor, "batch seq dim"]
    carry: Tree = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    penalty: Float[Tensor, ""] | None = None
    halt: Float[Tensor, "batch"] | None = None


BpttSegments = Callable[[int], list[int]]  # number of steps -> steps of each segment


def full_gradient(steps: int) -> list[int]:
    """Make one segment of all steps: every loss reaches back to the first step.

    >>> full_gradient(4)
    [4]
    """
    return [steps]


def truncated_gradient(steps: int, last: PositiveInt = 2) -> list[int]:
    """Cut segments of ``last`` steps, counted from the end: the final loss reaches back through the last ``last`` steps.

    >>> truncated_gradient(5, 2)
    [1, 2, 2]

    Source: truncated backpropagation through time, Williams and Peng (1990), in its segment-by-segment form.

    Raises:
        ValueError: a segment of no steps.
    """
    if last < 1:
        raise ValueError(f"the gradient must flow through at least 1 step, got last {last}")
    first = steps % last
    return [*([first] if first else []), *([last] * (steps // last))]


def one_step_gradient(steps: int) -> list[int]:
    """Cut after every step: each learns from its own loss alone.

    >>> one_step_gradient(3)
    [1, 1, 1]

    Source: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks" (2025), latents detached between
    supervision steps.
    """
    return [1] * steps


def bptt_segments(steps: int, bptt: BpttSegments) -> list[range]:
    """Number the steps of a recursion segment by segment.

    >>> bptt_segments(5, truncated_gradient)
    [range(0, 1), range(1, 3), range(3, 5)]
    """
    ends = list(accumulate(bptt(steps)))
    return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]


def relative_square(
    change: Float[Tensor, "batch seq dim"], states: Float[Tensor, "batch seq dim"], present: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch"]:
    """Compute |change|^2 / |states|^2 of each sequence without its padding, in the precision of what is given."""
    moved, size = ((x.square().sum(-1) * present).sum(1) for x in (change, states))
    return moved / size


def mapped(change: Callable[[Tensor], Tensor], tree: Tree) -> dict[str, Any]:
    """Apply a function to every tensor of a tree."""
    return {name: change(part) if isinstance(part, Tensor) else mapped(change, part) for name, part in tree.items()}


def detached(made: Tree, given: Tree) -> dict[str, Any]:
    """Detach what a step made; what it only hands on, the very tensors that it was given, keeps its gradient."""

    def cut(part: Any, before: Any) -> Any:
        if part is before:
            return part
        return part.detach() if isinstance(part, Tensor) else detached(part, before or {})

    return {name: cut(part, given.get(name)) for name, part in made.items()}


def tensors(tree: Tree) -> Iterator[Tensor]:
    """Iterate over a tree's tensors, in the order of its entries."""
    for part in tree.values():
        if isinstance(part, Tensor):
            yield part
        else:
            yield from tensors(part)


def noised(carry: Tree, states: Sequence[str], size: float, key: int, uid: Int[Tensor, "batch"]) -> Tree:
    """Add normal noise to states of a carry, ``size`` times the root mean square of each token's: a function of ``key`` and uid.

    Args:
        carry: of sequences, their tokens in the second dimension.
        states: names of those that get noise.
        size: 0 = none.
        key: what the noise is for (``components.noise.key``).
        uid: identity of each sequence.
    """
    changed = dict(carry)
    for stream, name in enumerate(states):
        state = carry[name]
        numbers = noise.normal(key, stream, uid, state[0].numel()).view(state.shape)
        wide = torch.promote_types(state.dtype, torch.float32)
        rms = state.detach().to(wide).square().mean(-1, keepdim=True).sqrt()
        changed[name] = state + (size * rms * numbers).to(state.dtype)
    return changed
