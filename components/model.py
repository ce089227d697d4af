"""What training and evaluation know of a model: states per supervised step, and logits of states. Nothing else."""

from collections import deque
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from components.batch import Batch
from components.recursion import State


class Model(nn.Module):
    """The interface of a backbone and of a refined backbone; one training loop and one evaluation serve both."""

    def steps(self, batch: Batch, *, statistics: bool = False) -> Iterator[State]:
        """Yield the state after each supervised step; ``statistics`` also measures slots where there are any."""
        raise NotImplementedError

    def readout(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of states. Gather the rows you need first; the head is the cost."""
        raise NotImplementedError

    def states(self, batch: Batch) -> Float[Tensor, "batch seq dim"]:
        """The last state only: earlier ones are dropped as soon as the next is made."""
        return deque((state.hidden for state in self.steps(batch)), maxlen=1).pop()
