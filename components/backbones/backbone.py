"""BackboneModel: the interface of what is refined. A model of its own whose layers can be cut in two: frozen trunk, live tail."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.batch import Batch
from components.model import Model
from components.nn.key_value_cache import KeyValueCache
from components.nn.sharing import share
from components.recursion import State, Tree
from components.refiners.core import Layout


class BackboneModel(Model):
    """Token ids -> hidden states -> logits. A backbone alone is a recursion of one step, so every phase shares one training loop.

    Attributes:
        architecture: arguments that build the same model again, with the class's name as ``model``; ``dim`` and ``layers`` are
            among them.
        causal: states at i know tokens up to i, and predict token i + 1 (``Batch.targets`` stand at i); else they know every token,
            and predict the masked ones.
        first_layer: lowest layer held here; 0 = the whole model, ``layers`` = norm, head and embeddings alone.
    """

    architecture: dict[str, Any]
    causal: bool = False
    first_layer: int
    n_steps: int = 1

    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every weight; ``generator`` is the only source of randomness."""
        raise NotImplementedError

    @classmethod
    def described(cls, architecture: Mapping[str, Any], first_layer: int = 0) -> "BackboneModel":
        """The model of this class that ``architecture`` describes, from ``first_layer`` on; its weights are not set."""
        return cls(**{name: value for name, value in architecture.items() if name != "model"}, first_layer=first_layer)

    def cut(self, first_layer: int) -> "BackboneModel":
        """A model of the same architecture that holds the layers from ``first_layer`` on; its weights are not set."""
        return self.described(self.architecture, first_layer)

    def above(self, split: int) -> "BackboneModel":
        """This very model from layer ``split`` on, for batches with the states that enter it; it takes no memory of its own."""
        return share(self.cut(split), self)

    def embed(
        self, tokens: Int[Tensor, "batch seq"], places: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Token embedding plus position (``places``; None = 0, 1, 2 ...): a table look-up, no layer runs."""
        raise NotImplementedError

    def trunk(
        self, tokens: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None, split: int
    ) -> Float[Tensor, "batch seq dim"]:
        """States entering layer ``split``: what extract stores."""
        raise NotImplementedError

    def entrance(self, layer: int) -> nn.Module:
        """Find the module whose first input is what enters a layer.

        Raises:
            ValueError: the model has no layers of its own between which there are states.
        """
        raise ValueError(f"the states that enter a layer of a {type(self).__name__} cannot be read: leave out taps (TAPS = ())")

    @contextmanager
    def entering(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect the states that enter layers, by layer, of what runs in between."""
        states: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in layers:
                read = partial(_read_first, states, layer)
                stack.callback(self.entrance(layer).register_forward_pre_hook(read, with_kwargs=True).remove)
            yield states

    def placed(
        self, states: Float[Tensor, "batch seq width"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "batch seq width"]:
        """Put states from between two layers where the last states of the same tokens stand."""
        return states

    def states_and_heads(
        self, batch: Batch, layers: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq context"] | None]:
        """Compute the last states of a batch, from its cached hidden states if it has any, else from its tokens; and the head
        outputs of ``layers``, None if there are none.
        """
        raise NotImplementedError

    def begin(self, batch: Batch, positions: Bool[Tensor, "batch seq"] | None = None) -> tuple[Tree, Tree, Layout]:
        """Compute the final states, which is all that a model of one step does."""
        return {}, {"hidden": self.states_and_heads(batch)[0]}, Layout(batch.attention, positions)

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Hand the carried states over; in a model of one step they are final."""
        return State(carry["hidden"], carry)


def _read_first(states: dict[int, Tensor], layer: int, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    states[layer] = given[0] if given else named["hidden_states"]
