"""The semantic slots of a token. By default four: context, reasoning, refinement, confidence.

| slot | source | made from | width |
|---|---|---|---|
| context | ``context`` | the attention's concatenated head output, before its output projection | d/2 |
| reasoning | ``attention`` | the same: slow-changing state | d/4 |
| refinement | ``change`` | change of the same since the previous step: update direction | d/4 |
| confidence | ``variance`` | variance of the embedding: uncertainty | d/8 |

Others are a list of ``Slot``: names are free, and statistics and gates bear them; the *last* one weighs the update.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

SOURCES = ("context", "attention", "change", "variance", "state", "backbone")


class Slot(NamedTuple):
    """A slot of a token: what it is called, what it is projected from, and how wide it is.

    Attributes:
        name: a plain word; statistics and gates bear it.
        source: "attention" = the concatenated heads of the refiner's own attention; "context" = the same, or those of chosen
            backbone layers (``SlotRefiner.context_layers``); "change" = of "attention", since the previous step; "variance" =
            log(1 + squared deviation) of each channel of the state; "state" = the state itself; "backbone" = the backbone's state;
            "tap 10" = the states that enter the backbone's layer 10 (-1 = the last), normed.
        width: channels, at least 2.
    """

    name: str
    source: str
    width: int


def tap_of(source: str) -> int | None:
    """Read the layer off a source that is a tap; None = it is another source.

    >>> tap_of("tap -3"), tap_of("state")
    (-3, None)
    """
    tap = re.fullmatch(r"tap (-?\d{1,4})", source, re.ASCII)
    return None if tap is None else int(tap[1])


def four_slots(dim: int) -> tuple[Slot, ...]:
    """Give the default slots: context d/2, reasoning d/4, refinement d/4, confidence d/8.

    >>> [tuple(slot) for slot in four_slots(64)][1:3]
    [('reasoning', 'attention', 16), ('refinement', 'change', 16)]

    Raises:
        ValueError: d is not divisible by 8 or below 16.
    """
    shares = (("context", "context", 2), ("reasoning", "attention", 4), ("refinement", "change", 4), ("confidence", "variance", 8))
    if dim % 8 or dim < 16:
        parts = ", ".join(f"{name} {dim / share:g}" for name, _, share in shares)
        raise ValueError(
            f"slot widths d/2, d/4, d/4, d/8 need a width of at least 16 divisible by 8, got {dim} ({parts}); give `slots`"
        )
    return tuple(Slot(name, source, dim // share) for name, source, share in shares)


def checked_slots(slots: Sequence[tuple[str, str, int]]) -> tuple[Slot, ...]:
    """Turn (name, source, width) into slots that can be built.

    >>> checked_slots([("context", "context", 8), ("doubt", "variance", 2)])[1].source
    'variance'

    Raises:
        ValueError: fewer than two, a name twice or that is no plain word, an unknown source, a width below 2.
    """
    made = tuple(Slot(*slot) for slot in slots)
    if len(made) < 2:
        raise ValueError(f"a slot refiner needs at least 2 slots, of which the last weighs the update, got {len(made)}")
    if twice := [name for name, count in Counter(slot.name for slot in made).items() if count > 1]:
        raise ValueError(f"slots must have names of their own, got '{twice[0]}' twice")
    for slot in made:
        if not slot.name.isidentifier() or hasattr(nn.ModuleDict, slot.name):
            raise ValueError(f"the name of a slot must be a plain word (letters, digits, _), got '{slot.name}'")
        if slot.source not in SOURCES and tap_of(slot.source) is None:
            expected = f"{', '.join(SOURCES)} or 'tap' and a layer's number"
            raise ValueError(f"the source of slot '{slot.name}' must be one of {expected}, got '{slot.source}'")
        if slot.width < 2:
            raise ValueError(
                f"slots must be at least 2 wide (a norm over one channel is always 0), got {slot.width} for '{slot.name}'"
            )
    return made


class Slots(nn.Module):
    """Projects a token into its slots; each has its own norm and its own sigmoid gate (0.5 at the start).

    The norms' epsilon is 1, not 1e-6: a slot of rms well below 1 keeps its size. The refinement slot shrinks as the recursion
    settles, and a norm that blows it up again unsettles it (measured on 4x4 puzzles, one seed, RMSNorm: .41 exact against .84).

    Args:
        dim: width of the states.
        slots: see ``Slot``; None = the four.
        context_dim: width of the source "context"; None = ``dim``.
    """

    def __init__(self, dim: int, slots: Sequence[tuple[str, str, int]] | None = None, context_dim: int | None = None) -> None:
        super().__init__()
        made = four_slots(dim) if slots is None else checked_slots(slots)
        self.sources: dict[str, str] = {slot.name: slot.source for slot in made}
        self.widths = {slot.name: slot.width for slot in made}
        inputs = {"context": dim if context_dim is None else context_dim}
        self.project = nn.ModuleDict({slot.name: nn.Linear(inputs.get(slot.source, dim), slot.width) for slot in made})
        self.norms = nn.ModuleDict({slot.name: nn.LayerNorm(slot.width, eps=1.0, bias=False) for slot in made})
        self.gate_logits = nn.Parameter(torch.zeros(len(made)))

    @property
    def total(self) -> int:
        """Width of the slots side by side (9d/8 by default)."""
        return sum(self.widths.values())

    @property
    def weighing(self) -> str:
        """Name of the slot that weighs the update: the last."""
        return list(self.widths)[-1]

    def gates(self) -> Float[Tensor, "slot"]:
        """Gate of each slot, 0..1; healthy values are 0.3 to 0.7."""
        return torch.sigmoid(self.gate_logits)

    def forward(
        self, sources: Mapping[str, Float[Tensor, "batch seq _"]], previous: Float[Tensor, "batch seq dim"] | None
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """The slots before norm and gate.

        Args:
            sources: what slots are projected from, by name (``Slot``); "attention" is always there.
            previous: "attention" of the previous step; None at the first, where nothing has changed yet (the slot is 0).
        """
        now = sources["attention"]
        before = now if previous is None else previous
        changes = [name for name, source in self.sources.items() if source == "change"]
        made = {name: self.project[name](now) - self.project[name](before) for name in changes}
        made |= {name: self.project[name](sources[source]) for name, source in self.sources.items() if name not in made}
        return {name: made[name] for name in self.widths}

    def gated(self, slots: Mapping[str, Float[Tensor, "batch seq _"]]) -> dict[str, Float[Tensor, "batch seq _"]]:
        """Norm each slot, then multiply it by its gate."""
        gates = self.gates()
        return {name: gates[i] * self.norms[name](slots[name]) for i, name in enumerate(self.widths)}
