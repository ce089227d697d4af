"""Core: the one interface of everything that refines hidden states step by step. State in, state out, one yield a supervised step.

What is the same at every step is computed once (``condition``); what a step hands to the next is its ``carry``, and nothing else.
That is what lets training keep a step's graph or make it again, cut the gradient anywhere, and drop sequences that are done.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.nn.key_value_cache import KeyValueCache
from components.recursion import State, Tree


@dataclass(frozen=True)
class Inputs:
    """What is to be refined, and what is known about it.

    Attributes:
        x: the backbone's hidden states.
        embedding: the frozen token embeddings (with positions) of the same tokens.
        heads: concatenated head outputs of chosen backbone layers; None unless the core reads them.
        confidence: the backbone's largest probability at masked positions, 1 elsewhere; None unless the core routes by it.
        taps: states that enter the backbone's layers ``Core.taps``, by layer.
    """

    x: Float[Tensor, "batch seq dim"]
    embedding: Float[Tensor, "batch seq dim"]
    heads: Float[Tensor, "batch seq context"] | None = None
    confidence: Float[Tensor, "batch seq"] | None = None
    taps: Mapping[int, Float[Tensor, "batch seq dim"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Which positions there are, what they may see and which may change.

    Attributes:
        attention: False at padding; None = no padding.
        positions: True where states may change; elsewhere they come out bit-identical to x. None = everywhere.
        places: index of each token in its sequence, for distances where only some tokens are there; None = all are.
        past: no token may learn of what stands behind it: ``causal_mask``, made once for all steps; None = every token may.
        cache: what tokens that were refined before these have left, which ``past`` speaks of too; None = these are all.
        read: indices of the positions whose states are wanted of a last step, sequence after sequence; a core may leave out what
            the others need. None = all.
    """

    attention: Bool[Tensor, "batch seq"] | None = None
    positions: Bool[Tensor, "batch seq"] | None = None
    places: Int[Tensor, "batch seq"] | None = None
    past: Bool[Tensor, "_ 1 seq keys"] | None = None
    cache: KeyValueCache | None = None
    read: Int[Tensor, "rows"] | None = None

    @property
    def causal(self) -> bool:
        """Whether a token is kept from learning of those behind it."""
        return self.past is not None

    def visible(self, x: Float[Tensor, "batch seq dim"]) -> Bool[Tensor, "_ 1 _ keys"] | None:
        """Which tokens each one's attention may see, over (batch, heads, queries, keys); None = all."""
        if self.cache is not None:
            return self.past
        keys = None if self.attention is None else rearrange(self.attention, "b s -> b 1 1 s")
        if self.past is None:
            return keys
        past = self.past[..., : x.shape[1], : x.shape[1]]
        return past if keys is None else past & keys

    def where(self, new: Float[Tensor, "batch seq dim"], x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """Take ``new`` where states may change, and ``x`` elsewhere."""
        return new if self.positions is None else torch.where(self.positions[..., None], new, x)

    def take(self, rows: Int[Tensor, "some"] | slice) -> "Layout":
        """Return the layout of some of the sequences alone."""
        attention, positions, places = (None if x is None else x[rows] for x in (self.attention, self.positions, self.places))
        return Layout(attention, positions, places, self.past)

    def of_read(self) -> "Layout":
        """Return the layout of the positions that are read, as one sequence, for what is of each position alone."""
        return Layout(positions=None if self.positions is None else self.positions.flatten()[self.read][None])

    def at_read(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "1 rows dim"]:
        """Gather of all positions those that are read, as one sequence."""
        return rearrange(x, "batch seq dim -> 1 (batch seq) dim")[:, self.read]

    def with_read(self, x: Float[Tensor, "batch seq dim"], new: Float[Tensor, "1 rows dim"]) -> Float[Tensor, "batch seq dim"]:
        """Put ``new`` where positions are read, and ``x`` elsewhere."""
        assert self.read is not None
        return x.flatten(0, 1).index_copy(0, self.read, new[0]).view_as(x)

    def parts(self, size: int, batch: int) -> list["Layout"]:
        """Cut the layout into those of ``size`` sequences each."""
        return [self.take(slice(first, first + size)) for first in range(0, batch, size)]


def causal_mask(x: Float[Tensor, "batch seq dim"]) -> Bool[Tensor, "1 1 seq seq"]:
    """Which tokens of ``x`` each one may learn of, over (batch, heads, queries, keys): those up to itself."""
    return torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()


class Core(nn.Module):
    """A refiner of hidden states of width ``dim`` in ``n_steps`` supervised steps.

    Attributes:
        architecture: arguments that build the same core again, with the class's name as ``core``.
        dim: width of the states.
        n_steps: supervised steps, the same in training and evaluation.
        context_layers: backbone layers whose head outputs the core reads.
        taps: backbone layers whose entering states the core reads; negative ones count from the last.
        needs_confidence: it needs to know the backbone's confidence.
        incremental: it can go on from what ``Layout.cache`` holds of other tokens; else all tokens are refined anew.
        anchored: every step sees what the recursion started from, so that steps behind a lead send it their gradient.
        remembered: states of its carry that a recursion may begin elsewhere with: at noised ones, or in a later denoising pass
            (``components.refiners.memory``); () = it may not.
        remembers: a denoising pass begins with what the pass before ended with.
    """

    architecture: dict[str, Any]
    dim: int
    n_steps: int
    context_layers: tuple[int, ...] = ()
    taps: tuple[int, ...] = ()
    needs_confidence: bool = False
    incremental: bool = False
    anchored: bool = True
    remembered: tuple[str, ...] = ()
    remembers: bool = False

    @classmethod
    def described(cls, architecture: Mapping[str, Any]) -> "Core":
        """Build the core of this class that ``architecture`` describes; its weights are not set."""
        return cls(**architecture)

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Fill every weight; ``hidden_rms`` (of the backbone's states) is the unit of an update."""
        raise NotImplementedError

    def condition(self, inputs: Inputs, layout: Layout) -> Tree:
        """Compute what is the same at every step."""
        raise NotImplementedError

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Tree) -> Tree:
        """What the first step starts from, when it begins at ``hidden``."""
        raise NotImplementedError

    def recalled(self, carry: Tree, memory: Tree) -> Tree:
        """Begin a denoising pass with what the one before ended with: its last carry, of the same sequences.

        Args:
            carry: what the first step starts from without it.
            memory: the last carry.
        """
        raise NotImplementedError

    def forward(self, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Run one supervised step from the carry."""
        raise NotImplementedError

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Step ``number`` (from 0): the same for every number, unless a core is made of several."""
        state: State = self(carry, condition, layout, statistics)
        return state

    def compile_targets(self) -> list[nn.Module]:
        """Modules whose call is the work of a step, on tensors of the same shapes every time: what is worth compiling.

        Raises:
            ValueError: shapes differ from batch to batch.
        """
        return [self]

    def refine(
        self,
        x: Float[Tensor, "batch seq dim"],
        embedding: Float[Tensor, "batch seq dim"],
        attention: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Bool[Tensor, "batch seq"] | None = None,
        heads: Float[Tensor, "batch seq context"] | None = None,
        confidence: Float[Tensor, "batch seq"] | None = None,
        taps: Mapping[int, Float[Tensor, "batch seq dim"]] = MappingProxyType({}),
        steps: int | None = None,
        statistics: bool = False,
    ) -> Iterator[State]:
        """Yield the state after each step, everything in one graph.

        Args:
            x, embedding, heads, confidence, taps: see ``Inputs``.
            attention, positions: see ``Layout``.
            steps: another number of steps than the core's own.
            statistics: also measure what the core can tell (no host sync).

        Raises:
            ValueError: fewer than one step.
        """
        n_steps = at_least_one_step(self.n_steps if steps is None else steps)
        layout = Layout(attention, positions)
        condition = self.condition(Inputs(x, embedding, heads, confidence, taps), layout)
        yield from recur(self.step, range(n_steps), self.initial_carry(x, condition), condition, layout, statistics)


def recur(
    step: Callable[[int, Tree, Tree, Layout, bool], State],
    steps: range,
    carry: Tree,
    condition: Tree,
    layout: Layout,
    statistics: bool,
) -> Iterator[State]:
    """Yield the state after each step of these numbers, everything in one graph; ``layout.read`` is of the last one."""
    whole = replace(layout, read=None)
    for number in steps:
        state = step(number, carry, condition, layout if number == steps[-1] else whole, statistics)
        yield state
        carry = state.carry


def shared_layers(*cores: Core) -> tuple[int, ...]:
    """The backbone layers whose heads these cores read; a model hands out one set of heads.

    Raises:
        ValueError: two of them read different ones.
    """
    first, *others = dict.fromkeys(core.context_layers for core in cores if core.context_layers) or [()]
    if others:
        raise ValueError(f"refiners of one model must read the heads of the same layers, got {list(first)} and {list(others[0])}")
    return first


def shared_taps(*cores: Core) -> tuple[int, ...]:
    """Name every backbone layer once whose entering states one of these cores reads."""
    return tuple(dict.fromkeys(layer for core in cores for layer in core.taps))


def at_least_one_step(steps: int) -> int:
    """``steps``, if the recursion can run that many; ValueError if not."""
    if steps < 1:
        raise ValueError(f"the recursion needs at least 1 step, got {steps}")
    return steps


class Injection(nn.Module):
    """What every step sees besides its own state: x and the token embeddings, each normed and projected."""

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        width = dim if width is None else width
        self.x_norm = nn.LayerNorm(dim, bias=False)
        self.project_x, self.project_embedding = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], embedding: Float[Tensor, "batch seq dim"]
    ) -> Float[Tensor, "batch seq width"]:
        return self.project_x(self.x_norm(x)) + self.project_embedding(F.rms_norm(embedding, embedding.shape[-1:]))


def uniform_(module: nn.Module, generator: torch.Generator) -> None:
    """Every linear layer below: weights and biases U(+-1/sqrt(fan-in))."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            bound = linear.in_features**-0.5
            for parameter in linear.parameters(recurse=False):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


def zeros_(linear: nn.Linear) -> None:
    """A layer that says nothing at first: the refined states then *are* the backbone's."""
    for parameter in linear.parameters(recurse=False):
        nn.init.zeros_(parameter)
