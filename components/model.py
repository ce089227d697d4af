"""What training and evaluation know of a model: supervised steps, and logits of states. Nothing else."""

from collections import deque
from collections.abc import Iterator

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from components.batch import Batch
from components.recursion import State, Tree
from components.refiners.core import Layout, at_least_one_step, recur


class Model(nn.Module):
    """The interface of a backbone and of a refined backbone; one training loop and one evaluation serve both.

    Attributes:
        head: maps normed states to logits.
        n_steps: supervised steps.
    """

    head: nn.Linear
    n_steps: int

    def begin(self, batch: Batch, positions: Bool[Tensor, "batch seq"] | None = None) -> tuple[Tree, Tree, Layout]:
        """What is the same at every step, what the first step starts from, and which positions there are."""
        raise NotImplementedError

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Supervised step ``number`` (from 0); ``statistics`` also measures slots where there are any."""
        raise NotImplementedError

    def normed(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """States as the head reads them."""
        raise NotImplementedError

    def compile_targets(self) -> list[nn.Module]:
        """What is worth compiling, see ``Core.compile_targets``; nothing if there is but one step."""
        return []

    def readout(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of states. Gather the rows you need first; the head is the cost."""
        logits: Tensor = self.head(self.normed(state))
        return logits

    def confidence(self, hidden: Float[Tensor, "batch seq dim"], batch: Batch) -> Float[Tensor, "rows"]:
        """The largest probability at each masked position; costs a readout of them."""
        logits = self.readout(rearrange(hidden, "batch seq dim -> (batch seq) dim")[batch.supervised]).float()
        return (logits.amax(-1) - logits.logsumexp(-1)).exp()

    def steps(
        self,
        batch: Batch,
        *,
        steps: int | None = None,
        positions: Bool[Tensor, "batch seq"] | None = None,
        statistics: bool = False,
    ) -> Iterator[State]:
        """Yield the state after each supervised step, everything in one graph.

        Args:
            batch: cached hidden states or tokens.
            steps: another number of steps than the model's own.
            positions: True where states may change; None = everywhere.
            statistics: also measure slots where there are any.
        """
        n_steps = at_least_one_step(self.n_steps if steps is None else steps)
        condition, carry, layout = self.begin(batch, positions)
        yield from recur(self.step, n_steps, carry, condition, layout, statistics)

    def states(self, batch: Batch) -> Float[Tensor, "batch seq dim"]:
        """The last state only: earlier ones are dropped as soon as the next is made."""
        return deque((state.hidden for state in self.steps(batch)), maxlen=1).pop()
