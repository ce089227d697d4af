"""What training and evaluation know of a model: supervised steps, and logits of states. Nothing else."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.batch import Batch
from components.nn.key_value_cache import KeyValueCache
from components.recursion import State, Tree, mapped
from components.refiners.core import Layout, at_least_one_step, recur


@dataclass(frozen=True)
class Carry:
    """Where a recursion stands between two calls of a model.

    Attributes:
        sequences: of the batch that it belongs to.
        steps: supervised steps taken so far.
        tree: what the next step starts from, without gradient; empty before the first.
    """

    sequences: int
    steps: int = 0
    tree: Tree = field(default_factory=dict)


class Model(nn.Module):
    """The interface of a backbone and of a refined backbone; one training loop and one evaluation serve both.

    It can be called: ``carry, outputs = model(model.initial_carry(batch), batch)``. Training and evaluation use the finer
    ``begin``, ``step`` and ``readout``.

    Attributes:
        head: maps normed states to logits.
        n_steps: supervised steps.
        remembers: a denoising pass begins with what the pass before over the same sequences ended with.
        carried_states: names of the states of its carry that a recursion may also begin elsewhere with; () = it may not.
    """

    head: nn.Linear
    n_steps: int
    remembers: bool = False
    carried_states: tuple[str, ...] = ()

    def begin(self, batch: Batch, positions: Bool[Tensor, "batch seq"] | None = None) -> tuple[Tree, Tree, Layout]:
        """What is the same at every step, what the first step starts from, and which positions there are."""
        raise NotImplementedError

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Supervised step ``number`` (from 0); ``statistics`` also measures slots where there are any."""
        raise NotImplementedError

    def recalled(self, carry: Tree, memory: Tree) -> Tree:
        """Mix the carry that the denoising pass before ended with into the fresh one of this pass."""
        raise NotImplementedError

    def normed(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Norm states as the head reads them."""
        raise NotImplementedError

    def key_value_cache(self) -> KeyValueCache | None:
        """Make a cache from which the model goes on (``Batch.cache``); None: it can only read all tokens anew."""
        return None

    def compile_targets(self) -> list[nn.Module]:
        """What is worth compiling, see ``Core.compile_targets``; nothing if there is but one step."""
        return []

    def shard_units(self) -> list[tuple[nn.Module, str]]:
        """List modules whose weights several processes can share out, and the method that runs each: once a forward pass, within
        ``begin``. Nothing else reads these weights.
        """
        return []

    def readout(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Compute the logits of states. Gather the rows you need first; the head is the cost."""
        logits: Tensor = self.head(self.normed(state))
        return logits

    def confidence(self, hidden: Float[Tensor, "batch seq dim"], batch: Batch) -> Float[Tensor, "rows"]:
        """The largest probability at each masked position; costs a readout of them."""
        logits = self.readout(rearrange(hidden, "batch seq dim -> (batch seq) dim")[batch.supervised]).float()
        return (logits.amax(-1) - logits.logsumexp(-1)).exp()

    def set_steps(self, steps: int | None) -> None:
        """Take this many supervised steps from now on; a model of one step keeps it, and None changes nothing.

        Raises:
            ValueError: fewer than one step.
        """
        if steps is not None and at_least_one_step(steps) and self.n_steps > 1:
            self.n_steps = steps

    def initial_carry(self, batch: Batch) -> Carry:
        """Say where the recursion over ``batch`` stands before its first step; costs nothing."""
        return Carry(len(batch))

    def forward(self, carry: Carry, batch: Batch, enable_deep_supervision: bool | None = None) -> tuple[Carry, dict[str, Any]]:
        """Take all supervised steps from where ``carry`` stands, and read out.

        Args:
            carry: of ``initial_carry`` or of an earlier call with the same batch, from which the recursion goes on. It hands on
                values and no gradient: each call is one computation graph.
            batch: cached hidden states or tokens.
            enable_deep_supervision: also read out every intermediate step; None = in training mode. Otherwise earlier states are
                dropped as soon as the next is made.

        Returns:
            The carry after the last step, and "logits" of every position after it; with deep supervision also
            "intermediate_logits", a list of one tensor a step, the last of which is "logits". Penalties and halting: ``steps``.

        Raises:
            ValueError: the carry belongs to a batch of another size.
        """
        if carry.sequences != len(batch):
            raise ValueError(f"the carry is of a batch of {carry.sequences} sequences, this one has {len(batch)}: begin anew")
        condition, first, layout = self.begin(batch)
        deep = self.training if enable_deep_supervision is None else enable_deep_supervision
        steps = range(carry.steps, carry.steps + self.n_steps)
        states = recur(self.step, steps, carry.tree or first, condition, layout, False)
        history = deque(states, maxlen=None if deep else 1)
        logits = [self.readout(state.hidden) for state in history]
        outputs: dict[str, Any] = {"logits": logits[-1], **({"intermediate_logits": logits} if deep else {})}
        return Carry(len(batch), steps.stop, mapped(Tensor.detach, history[-1].carry)), outputs

    def steps(
        self,
        batch: Batch,
        *,
        steps: int | None = None,
        positions: Bool[Tensor, "batch seq"] | None = None,
        statistics: bool = False,
        read: Int[Tensor, "rows"] | None = None,
    ) -> Iterator[State]:
        """Yield the state after each supervised step, everything in one graph.

        Args:
            batch: cached hidden states or tokens.
            steps: another number of steps than the model's own.
            positions: True where states may change; None = everywhere.
            statistics: also measure slots where there are any.
            read: indices of the positions where the last state is wanted, sequence after sequence; others may lack the last step.
                None = all.
        """
        n_steps = at_least_one_step(self.n_steps if steps is None else steps)
        condition, carry, layout = self.begin(batch, positions)
        yield from recur(self.step, range(n_steps), carry, condition, replace(layout, read=read), statistics)

    def states(self, batch: Batch, read: Int[Tensor, "rows"] | None = None) -> Float[Tensor, "batch seq dim"]:
        """The last state only, where it is ``read``: earlier ones are dropped as soon as the next is made."""
        return deque((state.hidden for state in self.steps(batch, read=read)), maxlen=1).pop()
