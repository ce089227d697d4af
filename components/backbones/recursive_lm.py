"""RecursiveLM: a recursive core as a model of its own, trained from scratch: embed, recur, read out after every step.

It is a backbone too, of ``steps`` "layers" that share their weights, and can be cut after the last of them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.backbones.backbone import BackboneModel
from components.backbones.positions import Apart, Positions
from components.batch import Batch
from components.ranges import PositiveInt
from components.recursion import State, Tree
from components.refiners.core import Inputs, Layout
from components.refiners.recursive_core import RecursiveCore

APART = Apart()


class RecursiveLM(BackboneModel):
    """Masked-diffusion model over token ids whose only body is a ``RecursiveCore``.

    Args:
        vocab: number of token ids, the mask and padding ids included.
        seq: longest sequence, in tokens.
        dim: width.
        core: takes dim and ``standalone``; its other sizes are bound.
        layers: the core's supervised steps, if that is known; nothing else fits.
        first_layer: 0 = whole model; ``layers`` = embeddings and head alone.
        positions: how they begin (``components.backbones.positions``).

    Raises:
        ValueError: sizes do not fit, ``first_layer`` is another number, or a grid has other positions.
    """

    def __init__(
        self,
        vocab: int,
        seq: int,
        dim: PositiveInt,
        core: Callable[..., RecursiveCore],
        layers: int | None = None,
        first_layer: int = 0,
        positions: Positions = APART,
    ) -> None:
        super().__init__()
        built = core(dim=dim, standalone=True)
        if layers not in (None, built.n_steps):
            raise ValueError(f"the core takes {built.n_steps} supervised steps, not {layers}")
        if first_layer not in (0, built.n_steps):
            raise ValueError(f"a recursive model can be cut after its last step ({built.n_steps}) or not at all, got {first_layer}")
        self.architecture: dict[str, Any] = {
            "model": "RecursiveLM", "vocab": vocab, "seq": seq, "dim": dim, "layers": built.n_steps, "core": built.architecture
        }  # fmt: skip
        self.first_layer, self.n_steps = first_layer, 1 if first_layer else built.n_steps
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(vocab, dim), freeze=False)  # a draw imports the compiler
        self.positions = nn.Parameter(torch.zeros(seq, dim))
        self._begin_positions = positions
        positions.check(seq)
        self.core = None if first_layer else built
        self.carried_states = () if first_layer else built.remembered
        self.head = nn.Linear(dim, vocab, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Embeddings and positions N(0, 1/2): their sum has rms 1, as the states have; head N(0, 1 / dim)."""
        nn.init.normal_(self.embedding.weight, std=0.5**0.5, generator=generator)
        self._begin_positions(self.positions, 0.5**0.5, generator)
        nn.init.normal_(self.head.weight, std=self.head.in_features**-0.5, generator=generator)
        if self.core is not None:
            self.core.init_weights(1.0, generator)

    @classmethod
    def described(cls, architecture: Mapping[str, Any], first_layer: int = 0) -> BackboneModel:
        """The model that ``architecture`` describes whole, or embeddings and head alone; its weights are not set."""
        given = {name: value for name, value in architecture["core"].items() if name not in ("core", "dim", "standalone")}
        return super().described({**architecture, "core": partial(RecursiveCore, **given)}, first_layer)

    def embed(
        self, tokens: Int[Tensor, "batch seq"], places: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Add each token's embedding and that of its position."""
        return self.embedding(tokens) + (self.positions[: tokens.shape[1]] if places is None else self.positions[places])

    def begin(self, batch: Batch, positions: Bool[Tensor, "batch seq"] | None = None) -> tuple[Tree, Tree, Layout]:
        """Embed the question; or take the last states, if the recursion lies below."""
        layout = Layout(batch.attention, positions)
        if self.core is None:
            assert batch.hidden is not None
            return {}, {"hidden": batch.hidden.to(self.head.weight.dtype)}, layout
        question = self.embed(batch.tokens)
        condition = self.core.condition(Inputs(question, question), layout)
        return condition, self.core.initial_carry(question, condition), layout

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Run one step of the core; without a core the states are final already."""
        if self.core is None:
            return State(carry["hidden"], carry)
        return self.core.step(number, carry, condition, layout, statistics)

    def normed(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Return the states as they are: the core's have rms 1."""
        return state

    def trunk(
        self, tokens: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None, split: int
    ) -> Float[Tensor, "batch seq dim"]:
        """States after the last step, the only split.

        Raises:
            ValueError: another split, or the recursion is not held here.
        """
        if self.core is None:
            raise ValueError("this recursive model was cut after its last step: what lies below is not held here")
        if split != self.n_steps:
            raise ValueError(f"a recursive model has states to split at after its last step ({self.n_steps}) only, got {split}")
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        return self.states(Batch(tokens, tokens, nothing, nothing.float(), attention))

    def states_and_heads(
        self, batch: Batch, layers: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq context"] | None]:
        """Compute the states after the last step. There are no heads to show: ``layers`` must be empty."""
        if layers:
            raise ValueError("a recursive model's head outputs cannot be a refiner's context")
        return self.states(batch), None

    def compile_targets(self) -> list[nn.Module]:
        """List the core's modules that are worth compiling."""
        return [] if self.core is None else self.core.compile_targets()
