"""SlotRefiner: the recursive head that turns frozen hidden states into better ones, one small step at a time.

One step: attention reads the state -> slots -> delta network -> confidence-weighted update. The same weights serve every step.
Notable: with the default update the output layer starts at zero, so at initialisation the refined states *are* the backbone's
states and every gain is the refiner's; x (the backbone's states) and the frozen token embeddings enter at every step, without
which the recursion has nothing to check its guesses against. The founding design differs in three objects: ``entry.Normed``, no
injection, ``delta.Clamped`` (preset ``literal``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.nn.attention import Attention, Block
from components.ranges import Depth, NonNegativeFloat, PositiveInt
from components.recursion import State, mapped
from components.refiners.core import Core, Injection, Inputs, Layout, uniform_, zeros_
from components.refiners.delta import Clamped, Damped, RmsScaled, Update
from components.refiners.entry import Entry, Identity, Normed
from components.refiners.orthogonality import overlap
from components.refiners.slots import Slots, checked_slots, tap_of
from components.refiners.statistics import mean, mean_square

PARTS: dict[str, Callable[..., Any]] = {part.__name__: part for part in (Identity, Normed, Injection, RmsScaled, Damped, Clamped)}
DAMPED = Damped()


class SlotRefiner(Core):
    """Slot-based recursive refiner on hidden states of width ``dim``.

    Args:
        dim: width of the backbone's hidden states.
        heads: attention heads of a refiner block; None = by ``head_width``.
        steps: recursion steps K, the same in training and evaluation.
        blocks: transformer blocks per step (weights shared over steps). The slots read the last one's heads, so what would
            follow them there (output projection, MLP) is left out: nothing would use it.
        mlp_ratio: width of a block's MLP over ``dim``.
        delta_ratio: width of the delta network's hidden layer over ``dim``.
        slots: (name, source, width) of each slot (``components.refiners.slots.Slot``); the last weighs the update. None = context,
            reasoning, refinement, confidence, of widths d/2, d/4, d/4, d/8.
        entry: how the backbone's states enter (``components.refiners.entry``); takes dim.
        injection: what every step sees of x and the token embeddings beside its state, which it then reads through a norm; takes
            dim. None = the state alone.
        update: how the delta network's proposal changes the states (``components.refiners.delta``).
        orthogonality: weight of the slots' overlap in each step's loss (``components.refiners.orthogonality``).
        rotary: attention also sees distances (``components.nn.attention.rotate``); what the backbone has is a good choice.
        context_layers: backbone layers (-1 = the last) whose concatenated head outputs are the source "context", instead of the
            refiner's own attention; they must be live, that is, not below the split of the shards.
        head_width: channels of an attention head at most, in place of ``heads``: the widest heads that fit ``dim``.

    Raises:
        ValueError: slots or heads do not fit ``dim`` (the message names the numbers), or both or neither of ``heads`` and
            ``head_width`` are given.
    """

    incremental = True
    remembered = ("hidden",)

    def __init__(
        self,
        dim: int,
        heads: PositiveInt | None = 4,
        steps: Depth = 4,
        blocks: Depth = 1,
        mlp_ratio: PositiveInt = 4,
        delta_ratio: PositiveInt = 4,
        slots: Sequence[tuple[str, str, int]] | None = None,
        entry: Callable[..., Entry] = Identity,
        injection: Callable[..., Injection] | None = Injection,
        update: Update = DAMPED,
        orthogonality: NonNegativeFloat = 0.0,
        rotary: bool = False,
        context_layers: Sequence[int] | None = None,
        head_width: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or blocks < 1:
            raise ValueError(f"the refiner needs at least 1 step and 1 block, got steps {steps} and blocks {blocks}")
        heads = _heads(dim, heads, head_width)
        self.dim, self.n_steps, self.orthogonality, self.update = dim, steps, orthogonality, update
        self.entry = entry(dim=dim)
        self.state_norm = None if injection is None else nn.LayerNorm(dim, bias=False)
        self.injection = None if injection is None else injection(dim=dim)
        self.anchored = injection is not None or update.anchored
        self.context_layers = tuple(context_layers or ())
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, rotary) for _ in range(blocks - 1))
        self.attention_norm, self.attention = nn.LayerNorm(dim, bias=False), Attention(dim, heads, rotary)
        self.slots = Slots(dim, slots, dim * len(self.context_layers) or dim)
        self.tap_sources = {source: tap for source in self.slots.sources.values() if (tap := tap_of(source)) is not None}
        self.taps = tuple(dict.fromkeys(self.tap_sources.values()))
        self.confidence = nn.Linear(self.slots.widths[self.slots.weighing], 1)
        self.delta_in = nn.Linear(self.slots.total, delta_ratio * dim)
        self.delta_out = nn.Linear(delta_ratio * dim, dim)
        self.hidden_rms: Tensor
        self.register_buffer("hidden_rms", torch.ones(()))
        self.architecture = {
            "core": "SlotRefiner", "dim": dim, "heads": heads, "steps": steps, "blocks": blocks,
            "mlp_ratio": mlp_ratio, "delta_ratio": delta_ratio,
            "slots": None if slots is None else [slot._asdict() for slot in checked_slots(slots)],
            "entry": _name(self.entry), "injection": None if self.injection is None else _name(self.injection),
            "update": {"update": _name(update), **asdict(update)}, "orthogonality": orthogonality,
            "rotary": rotary, "context_layers": None if context_layers is None else list(context_layers),
        }  # fmt: skip

    @classmethod
    def described(cls, architecture: Mapping[str, Any]) -> "SlotRefiner":
        """Build the refiner that ``architecture`` describes, its parts by their names; its weights are not set.

        Raises:
            ValueError: it was written by another version, or names a part that is not known here.
        """
        named = dict(architecture)
        if missing := {"slots", "entry", "injection", "update"} - set(named):
            raise ValueError(
                f"this slot refiner's description lacks {sorted(missing)[0]}; another version wrote it: train it again"
            )
        if named["slots"] is not None:
            named["slots"] = [(slot["name"], slot["source"], slot["width"]) for slot in named["slots"]]
        sizes = dict(named["update"])
        named["update"] = _part(sizes.pop("update"))(**sizes)
        named["entry"] = _part(named["entry"])
        named["injection"] = None if named["injection"] is None else _part(named["injection"])
        return cls(**named)

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Fill linear layers with U(+-1/sqrt(fan-in)), blocks as in ``Block``; gates 0.5; a silent update's output layer 0.

        Args:
            hidden_rms: root mean square of the backbone's hidden states: the unit of an update.
            generator: the only source of randomness.
        """
        uniform_(self, generator)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.init_weights(0.3 * self.dim**-0.5, generator)
        nn.init.normal_(self.attention.qkv.weight, std=0.7 * self.dim**-0.5, generator=generator)
        self.hidden_rms.fill_(self.entry.unit(hidden_rms))
        if self.update.silent:
            zeros_(self.delta_out)

    def condition(self, inputs: Inputs, layout: Layout) -> dict[str, Tensor]:
        """x itself, what of it every step sees, the taps that slots read, and the backbone's heads if they are the context."""
        seen = {} if self.injection is None else {"injected": self.injection(inputs.x, inputs.embedding)}
        seen |= {source: F.rms_norm(inputs.taps[tap], (self.dim,)) for source, tap in self.tap_sources.items()}
        if not self.context_layers:
            return {"x": inputs.x, **seen}
        if inputs.heads is None:
            raise ValueError(f"the refiner reads the heads of backbone layers {list(self.context_layers)}, and was given none")
        return {"x": inputs.x, **seen, "heads": inputs.heads}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Start from the states, with no context yet."""
        start = self.entry(hidden)
        return {"hidden": start, "base": start} if self.update.anchored else {"hidden": start}

    def forward(
        self, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool = False
    ) -> State:
        """One step: attention -> slots -> delta network -> confidence-weighted update."""
        hidden = layout.where(carry["hidden"], condition["x"])
        u = hidden if self.state_norm is None else self.state_norm(hidden) + condition["injected"]
        visible = layout.visible(u)
        for block in self.blocks:
            u = block(u, visible, layout.places, layout.cache)
        context = self.attention(self.attention_norm(u), visible, layout.places, layout.cache)
        now = {"hidden": hidden, "context": context}
        if layout.read is None:
            return self._changed(now, carry, condition, layout, statistics)
        seen = {name: state for name, state in condition.items() if name != "injected"}  # which attention has read
        before = {name: state for name, state in carry.items() if name != "hidden"}
        now, before, seen = (mapped(layout.at_read, tree) for tree in (now, before, seen))
        return State(layout.with_read(hidden, self._changed(now, before, seen, layout.of_read(), False).hidden))

    def _changed(
        self,
        now: Mapping[str, Tensor],
        carry: Mapping[str, Tensor],
        condition: Mapping[str, Tensor],
        layout: Layout,
        statistics: bool,
    ) -> State:
        """What follows attention, which is of each position alone: slots -> delta network -> confidence-weighted update."""
        hidden, context = now["hidden"], now["context"]
        slots = self.slots(self._sources(hidden, context, condition), carry.get("context"))
        gated = self.slots.gated(slots)
        confidence = torch.sigmoid(self.confidence(gated[self.slots.weighing]))
        proposed = self.delta_out(F.gelu(self.delta_in(torch.cat(list(gated.values()), -1))))
        base = {"base": carry["base"]} if self.update.anchored else {}
        update = confidence * self.update(proposed, self.hidden_rms, hidden, base.get("base", condition["x"]))
        refined = layout.where(hidden + update, condition["x"])
        return State(
            refined,
            {"hidden": refined, "context": context, **base},
            self._measure(slots, confidence, update, layout.attention) if statistics else {},
            self.orthogonality * overlap(slots, layout.attention) if self.orthogonality else None,
        )

    def _sources(
        self, hidden: Float[Tensor, "batch seq dim"], context: Float[Tensor, "batch seq dim"], condition: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What the slots are projected from, by the names of ``Slot.source``; states in units of ``hidden_rms``."""
        made = {"attention": context, "context": condition.get("heads", context)}
        for source in dict.fromkeys(self.slots.sources.values()):
            if source == "variance":  # log(1 + squared deviation of each channel from the token's mean)
                scaled = hidden / self.hidden_rms
                made[source] = torch.log1p((scaled - scaled.mean(-1, keepdim=True)).square())
            elif source == "state":
                made[source] = hidden / self.hidden_rms
            elif source == "backbone":
                made[source] = condition["x"] / self.hidden_rms
            elif source in self.tap_sources:
                made[source] = condition[source]
        return made

    @torch.no_grad()
    def _measure(
        self, slots: Mapping[str, Tensor], confidence: Tensor, update: Tensor, attention: Tensor | None
    ) -> dict[str, Tensor]:
        """0-d tensors over unpadded positions, still on the device: reading them is left to whoever logs."""
        gates = self.slots.gates()
        return {
            **{f"slot/{name}": mean_square(value, attention).sqrt() for name, value in slots.items()},
            **{f"gate/{name}": gates[i] for i, name in enumerate(slots)},
            "confidence": mean(confidence, attention),
            "delta": mean_square(update, attention).sqrt(),
            "overlap": overlap(slots, attention),
        }


def _heads(dim: int, heads: int | None, head_width: int | None) -> int:
    """How many heads: as many as given, or as few as divide ``dim`` into heads of at most ``head_width`` channels."""
    if (heads is None) == (head_width is None):
        raise ValueError(f"give heads or head_width, and None for the other, got heads {heads} and head_width {head_width}")
    if heads is not None:
        return heads
    assert head_width is not None
    if head_width < 1:
        raise ValueError(f"head_width must be at least 1, got {head_width}")
    return next(count for count in range(1, dim + 1) if dim % count == 0 and dim // count <= head_width)


def _name(part: object) -> str:
    """Name of a part's class; gin may have made a subclass of the same name."""
    return type(part).__name__


def _part(name: str) -> Callable[..., Any]:
    if name not in PARTS:
        raise ValueError(f"no part of the slot refiner is called '{name}'; there are {', '.join(PARTS)}")
    return PARTS[name]
