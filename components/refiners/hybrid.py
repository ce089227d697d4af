"""Hybrid: which refiner a chunk gets depends on how sure the backbone is of it. With one refiner only: selective refinement.

Chunks are *packed*: a refiner computes on the tokens it is given and on nothing else, so what is skipped is really saved, and comes
out bit-identical. A refiner's attention therefore sees the tokens of its own chunks; of the others it knows what the backbone's
states say.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from einops import reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.ranges import PositiveInt, Share
from components.recursion import State, Tree
from components.refiners.core import Core, Inputs, Layout, shared_layers, shared_taps


class Hybrid(Core):
    """Doubtful chunks go to one refiner, confident ones to another or to none.

    Args:
        dim: width of the states.
        doubtful: refiner of chunks whose confidence is below ``threshold``; takes dim.
        confident: refiner of the others; None = they are left as they are.
        chunk: tokens that are routed together.
        threshold: of a chunk's confidence: the smallest of the backbone's largest probabilities over its masked tokens.
        route: "chunks" = by confidence; "doubtful" or "confident" = everything to that one, for a whole run.

    Raises:
        ValueError: the two have different numbers of steps or read different backbone layers, there is none for the route, or a
            chunk holds no token.
    """

    def __init__(
        self,
        dim: int,
        doubtful: Callable[..., Core],
        confident: Callable[..., Core] | None = None,
        chunk: PositiveInt = 16,
        threshold: Share = 0.9,
        route: Literal["chunks", "doubtful", "confident"] = "chunks",
    ) -> None:
        super().__init__()
        self.doubtful, self.confident = doubtful(dim=dim), None if confident is None else confident(dim=dim)
        self.dim, self.n_steps = dim, self.doubtful.n_steps
        if self.confident is not None and self.confident.n_steps != self.n_steps:
            raise ValueError(f"both refiners need as many steps, got {self.n_steps} and {self.confident.n_steps}")
        if chunk < 1:
            raise ValueError(f"a chunk needs at least 1 token, got {chunk}")
        if route not in ("chunks", "doubtful", "confident") or (route == "confident" and self.confident is None):
            raise ValueError(f"route must be 'chunks', 'doubtful' or (with a refiner for them) 'confident', got '{route}'")
        self.chunk, self.threshold, self.route = chunk, threshold, route
        self.context_layers, self.taps = shared_layers(*self._cores().values()), shared_taps(*self._cores().values())
        self.needs_confidence, self.anchored = route == "chunks", all(core.anchored for core in self._cores().values())
        self.architecture: dict[str, Any] = {
            "core": "Hybrid", "dim": dim, "doubtful": self.doubtful.architecture,
            "confident": None if self.confident is None else self.confident.architecture,
            "chunk": chunk, "threshold": threshold, "route": route,
        }  # fmt: skip

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Draw the weights of each refiner, of one that no token is sent to as well."""
        self.doubtful.init_weights(hidden_rms, generator)
        if self.confident is not None:
            self.confident.init_weights(hidden_rms, generator)

    def condition(self, inputs: Inputs, layout: Layout) -> Tree:
        """Where each refiner's tokens stand, and its condition on them.

        Raises:
            ValueError: chunks are to be routed, and no token may learn of those behind it: a chunk's confidence would tell.
        """
        if layout.causal and self.route == "chunks":
            raise ValueError("a causal backbone's chunks cannot be routed by confidence: it tells of tokens that are still to come")
        doubtful = self._doubtful_positions(inputs)
        chosen = {"doubtful": doubtful, "confident": ~doubtful}
        conditions: dict[str, Any] = {"x": inputs.x}
        for name, core in self._cores().items():
            tokens = chosen[name] if layout.attention is None else chosen[name] & layout.attention
            places, valid = packed(tokens)
            part = {"places": places, "valid": valid}
            heads = None if inputs.heads is None else taken(inputs.heads, places)
            taps = {layer: taken(inputs.taps[layer], places) for layer in core.taps}
            inner = Inputs(taken(inputs.x, places), taken(inputs.embedding, places), heads, taps=taps)
            conditions[name] = {**part, "inner": core.condition(inner, _layout(part, layout))}
        return conditions

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Tree) -> Tree:
        """Start from the carry of each refiner, made from its own tokens."""
        return {
            name: core.initial_carry(taken(hidden, condition[name]["places"]), condition[name]["inner"])
            for name, core in self._cores().items()
        }

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """A step of each refiner on its tokens; of two, statistics bear the refiner's name: ``delta/doubtful``."""
        hidden, carries, penalty = condition["x"], {}, None
        measured: dict[str, Tensor] = {}
        cores = self._cores()
        for name, core in cores.items():
            part = condition[name]
            state = core.step(number, carry[name], part["inner"], _layout(part, layout), statistics)
            old = taken(hidden, part["places"])  # of tokens that stand in for none, perhaps refined by the other
            new = torch.where(part["valid"][..., None], state.hidden, old)
            hidden = hidden.scatter(1, repeat(part["places"], "b m -> b m d", d=self.dim), new.to(hidden.dtype))
            carries[name] = state.carry
            measured |= {key if len(cores) == 1 else f"{key}/{name}": value for key, value in state.statistics.items()}
            if statistics:
                tokens = hidden.shape[:2].numel() if layout.attention is None else layout.attention.sum()
                measured[f"share/{name}"] = part["valid"].sum() / tokens
            if state.penalty is not None:
                penalty = state.penalty if penalty is None else penalty + state.penalty
        return State(hidden, carries, measured, penalty)

    def compile_targets(self) -> list[nn.Module]:
        """None: how many tokens a refiner is given is another number for every batch.

        Raises:
            ValueError: always.
        """
        raise ValueError("a Hybrid packs its tokens, as many as there happen to be: there are no shapes to compile a step for")

    def _cores(self) -> dict[str, Core]:
        both = {"doubtful": self.doubtful, "confident": self.confident}
        return {name: core for name, core in both.items() if core is not None and self.route in ("chunks", name)}

    def _doubtful_positions(self, inputs: Inputs) -> Bool[Tensor, "batch seq"]:
        if self.route != "chunks":
            return torch.full(inputs.x.shape[:2], self.route == "doubtful", device=inputs.x.device)
        if inputs.confidence is None:
            raise ValueError("chunks are routed by the backbone's confidence, and none was given")
        seq = inputs.x.shape[1]
        padded = F.pad(inputs.confidence, (0, -seq % self.chunk), value=1.0)
        least = reduce(padded, "b (c n) -> b c", "min", n=self.chunk)
        return repeat(least < self.threshold, "b c -> b (c n)", n=self.chunk)[:, :seq]


def packed(selected: Bool[Tensor, "batch seq"]) -> tuple[Tensor, Tensor]:
    """Positions of the wanted tokens, moved to the front of each sequence, and which of them are: as many as the longest has.

    >>> packed(torch.tensor([[False, True, True], [True, False, False]]))
    (tensor([[1, 2],
            [0, 1]]), tensor([[ True,  True],
            [ True, False]]))
    """
    counts = selected.sum(1)
    longest = max(1, int(counts.max()))
    places = (~selected).to(torch.int8).argsort(dim=1, stable=True)[:, :longest]
    return places, torch.arange(longest, device=selected.device) < counts[:, None]


def taken(x: Float[Tensor, "batch seq dim"], places: Tensor) -> Float[Tensor, "batch packed dim"]:
    """Gather the tokens of x that stand at ``places``."""
    return x.gather(1, repeat(places, "b m -> b m d", d=x.shape[-1]))


def _layout(part: Mapping[str, Tensor], layout: Layout) -> Layout:
    """Of the packed tokens. Where a sequence has none, the first stands in for attention's sake, and is dropped afterwards."""
    first = torch.arange(part["valid"].shape[1], device=part["valid"].device) == 0
    positions = None if layout.positions is None else layout.positions.gather(1, part["places"])
    return Layout(part["valid"] | first, positions, part["places"], layout.past)
