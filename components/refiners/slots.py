"""The four semantic slots of a token: context, reasoning, refinement, confidence.

| slot | made from | width |
|---|---|---|
| context | the attention's concatenated head output, before its output projection | d/2 |
| reasoning | the same context: slow-changing state | d/4 |
| refinement | change of the context since the previous step: update direction | d/4 |
| confidence | variance of the embedding: uncertainty | d/8 |
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

NAMES = ("context", "reasoning", "refinement", "confidence")
_FRACTIONS = (2, 4, 4, 8)


def slot_widths(dim: int, widths: Mapping[str, int] | None = None) -> dict[str, int]:
    """Width of each slot: d/2, d/4, d/4, d/8, or as given.

    >>> slot_widths(64)
    {'context': 32, 'reasoning': 16, 'refinement': 16, 'confidence': 8}

    Raises:
        ValueError: d is not divisible by 8 or below 16 and no widths are given; a slot is missing, unknown or narrower than 2.
    """
    if widths is None:
        if dim % max(_FRACTIONS) or dim < 2 * max(_FRACTIONS):
            parts = ", ".join(f"{name} {dim / f:g}" for name, f in zip(NAMES, _FRACTIONS, strict=True))
            raise ValueError(
                f"slot widths d/2, d/4, d/4, d/8 need a width of at least 16 divisible by 8, got {dim} ({parts}); give `widths`"
            )
        return {name: dim // f for name, f in zip(NAMES, _FRACTIONS, strict=True)}
    if set(widths) != set(NAMES):
        raise ValueError(f"slot widths must name exactly {', '.join(NAMES)}, got {', '.join(sorted(widths))}")
    if narrow := {k: w for k, w in widths.items() if w < 2}:
        raise ValueError(f"slot widths must be at least 2 (a norm over one channel is always 0), got {narrow}")
    return {name: widths[name] for name in NAMES}


class Slots(nn.Module):
    """Projects a token into its four slots; each has its own norm and its own sigmoid gate (0.5 at the start).

    The norms' epsilon is 1, not 1e-6: a slot of rms well below 1 keeps its size. The refinement slot shrinks as the recursion
    settles, and a norm that blows it up again unsettles it (measured on 4x4 puzzles, one seed, RMSNorm: .41 exact against .84).
    """

    def __init__(self, dim: int, widths: Mapping[str, int] | None = None, context_dim: int | None = None) -> None:
        super().__init__()
        self.widths = slot_widths(dim, widths)
        sources = {"context": dim if context_dim is None else context_dim}
        self.project = nn.ModuleDict({name: nn.Linear(sources.get(name, dim), width) for name, width in self.widths.items()})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width, eps=1.0, bias=False) for name, width in self.widths.items()})
        self.gate_logits = nn.Parameter(torch.zeros(len(NAMES)))

    @property
    def total(self) -> int:
        """Width of the four slots side by side (9d/8 by default)."""
        return sum(self.widths.values())

    def gates(self) -> Float[Tensor, "slot"]:
        """Gate of each slot, 0..1; healthy values are 0.3 to 0.7."""
        return torch.sigmoid(self.gate_logits)

    def forward(
        self,
        context: Float[Tensor, "batch seq dim"],
        previous: Float[Tensor, "batch seq dim"] | None,
        variance: Float[Tensor, "batch seq dim"],
        source: Float[Tensor, "batch seq context"] | None = None,
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """The slots before norm and gate.

        Args:
            context: concatenated head output of this step.
            previous: that of the previous step; None at the first step, where nothing has changed yet (slot = 0).
            variance: per-channel variance estimate of the embedding.
            source: of the context slot; None = ``context``.
        """
        reasoning, refinement = self.project["reasoning"], self.project["refinement"]
        change = refinement(context) - refinement(context if previous is None else previous)
        return {
            "context": self.project["context"](context if source is None else source),
            "reasoning": reasoning(context),
            "refinement": change,
            "confidence": self.project["confidence"](variance),
        }

    def gated(self, slots: Mapping[str, Float[Tensor, "batch seq _"]]) -> dict[str, Float[Tensor, "batch seq _"]]:
        """Each slot normed, then times its gate."""
        gates = self.gates()
        return {name: gates[i] * self.norms[name](slots[name]) for i, name in enumerate(NAMES)}
