"""The recursion: one step function applied K times, one state out per supervised step.

What differs between the choices is where the gradient flows, never the values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class State:
    """What one recursion step hands to the next.

    Attributes:
        hidden: the refined hidden states; the readout maps them to logits.
        context: the attention context of the step that made it; None before the first step.
        statistics: 0-d tensors on the device of the step (slot norms, gates, ...); empty unless asked for.
        penalty: 0-d tensor to add to this step's loss; None unless the model has one.
    """

    hidden: Float[Tensor, "batch seq dim"]
    context: Float[Tensor, "batch seq dim"] | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    penalty: Float[Tensor, ""] | None = None


Step = Callable[[State], State]
Recursion = Callable[[Step, State, int], Iterator[State]]


def full_gradient(step: Step, state: State, steps: int) -> Iterator[State]:
    """Yield the state after each of ``steps`` steps; the gradient of a late step flows through all earlier ones."""
    for _ in range(steps):
        state = step(state)
        yield state


def one_step_gradient(step: Step, state: State, steps: int) -> Iterator[State]:
    """As ``full_gradient``, with the state detached between steps: each step learns from its own loss alone.

    Source: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks" (2025), detached latents between
    supervision steps.
    """
    for _ in range(steps):
        state = step(state)
        yield state
        context = None if state.context is None else state.context.detach()
        state = State(state.hidden.detach(), context)
