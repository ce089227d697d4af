"""The one tensor contract: what every model, loss and metric in this project receives.

Cached shards and a live trunk make the *same* Batch, so nothing downstream knows where the hidden states came from.

Dimension names used in every signature: ``batch`` sequences, ``seq`` positions, ``dim`` backbone width,
``vocab`` tokens, ``rows`` supervised positions gathered from a batch, ``heads``, ``head`` width of one head,
``step`` supervised recursion step, ``slot`` and ``width`` of a slot.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from components.nn.key_value_cache import KeyValueCache
from components.quantisation import expanded


@dataclass(frozen=True)
class Batch:
    """Sequences with some positions masked, and what they should be.

    Attributes:
        tokens: ids as the backbone sees them; masked positions hold the mask id.
        targets: ids as they should be.
        masked: True where the loss is taken.
        weights: loss weight of each position, 0 where ``masked`` is False. They are scaled so that the loss of a batch is
            ``sum(weights * cross_entropy) / sequences`` (see ``components.objective.masking``).
        attention: True where a position holds a token, False for padding; None when no sequence is padded.
        hidden: states that enter the first live layer (the split); None when the model runs from the token ids.
        rows: indices of the masked positions, sequence after sequence; ``to`` finds them on the host, so that no device waits.
        scale, channel: of hidden states in eight bits, which ``to`` expands on the device (``components.quantisation``); else None.
        cache: what a model has kept of tokens that it read before these (``KeyValueCache``); None = these are all.
    """

    tokens: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    masked: Bool[Tensor, "batch seq"]
    weights: Float[Tensor, "batch seq"]
    attention: Bool[Tensor, "batch seq"] | None = None
    hidden: Float[Tensor, "batch seq dim"] | Int8[Tensor, "batch seq dim"] | None = None
    rows: Int[Tensor, "rows"] | None = None
    scale: Float[Tensor, "batch seq"] | None = None
    channel: Float[Tensor, "dim"] | None = None
    cache: KeyValueCache | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``, its states expanded if they are stored in eight bits."""
        moved = replace(self, rows=self.supervised)._each(lambda value: value.to(device, non_blocking=True))
        if moved.hidden is None or moved.scale is None or moved.channel is None:
            return moved
        return replace(moved, hidden=expanded(moved.hidden, moved.scale, moved.channel), scale=None, channel=None)

    @property
    def supervised(self) -> Int[Tensor, "rows"]:
        """Indices of the masked positions among all positions of the batch."""
        return self.masked.flatten().nonzero()[:, 0] if self.rows is None else self.rows

    def per_sequence(self, rows: Float[Tensor, "rows"]) -> Float[Tensor, "batch"]:
        """Sum of a value of each masked position over its sequence."""
        return rows.new_zeros(len(self)).index_add(0, self.supervised // self.masked.shape[1], rows)

    def cut(self, length: int) -> "Batch":
        """Return the first ``length`` positions alone. Only before ``to``."""
        return self._each(lambda value: value[:, :length] if value.ndim > 1 else value)

    def take(self, rows: Int[Tensor, "some"]) -> "Batch":
        """Return a batch of these sequences. Only after ``to``: the states' scales are not taken along."""
        return replace(self, rows=None)._each(lambda value: value[rows])

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies while it computes; torch's loaders know it by this name."""
        return self._each(lambda value: value.pin_memory() if value.device.type == "cpu" else value)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        present = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in present.items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return self.tokens.shape[0]
