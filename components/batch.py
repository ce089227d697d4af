"""The one tensor contract: what every model, loss and metric in this project receives.

Cached shards and a live trunk make the *same* Batch, so nothing downstream knows where the hidden states came from.

Dimension names used in every signature: ``batch`` sequences, ``seq`` positions, ``dim`` backbone width,
``vocab`` tokens, ``rows`` supervised positions gathered from a batch, ``heads``, ``head`` width of one head,
``step`` supervised recursion step, ``slot`` and ``width`` of a slot.
"""

from collections.abc import Callable, Sequence
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
        taps: states that enter the layers ``tap_layers``, side by side, for a refiner that reads them; None = there are none.
        tap_layers: whose they are, numbered from 0.
        scale, channel: of hidden states in eight bits, which ``to`` expands on the device (``components.quantisation``), those of
            taps behind those of ``hidden``; else None.
        cache: what a model has kept of tokens that it read before these (``KeyValueCache``); None = these are all.
        later: the same sequences in the denoising passes after this one, each with fewer masks, for models that remember; None = it
            is a pass of its own.
    """

    tokens: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    masked: Bool[Tensor, "batch seq"]
    weights: Float[Tensor, "batch seq"]
    attention: Bool[Tensor, "batch seq"] | None = None
    hidden: Float[Tensor, "batch seq dim"] | Int8[Tensor, "batch seq dim"] | None = None
    rows: Int[Tensor, "rows"] | None = None
    taps: Float[Tensor, "batch seq tapped"] | Int8[Tensor, "batch seq tapped"] | None = None
    tap_layers: tuple[int, ...] = ()
    scale: Float[Tensor, "batch seq"] | None = None
    channel: Float[Tensor, "channels"] | None = None
    cache: KeyValueCache | None = None
    later: tuple["Batch", ...] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``, its states expanded if they are stored in eight bits."""
        later = self._later(lambda batch: batch.to(device))
        moved = replace(self, rows=self.supervised, later=later)._only(lambda value: value.to(device, non_blocking=True))
        if moved.hidden is None or moved.scale is None or moved.channel is None:
            return moved
        dim, taps = moved.hidden.shape[-1], moved.taps
        hidden = expanded(moved.hidden, moved.scale, moved.channel[:dim])
        taps = None if taps is None else expanded(taps, moved.scale, moved.channel[dim:])
        return replace(moved, hidden=hidden, taps=taps, scale=None, channel=None)

    def entered(
        self, states: Float[Tensor, "batch seq channels"] | Int8[Tensor, "batch seq channels"], taps: Sequence[int]
    ) -> "Batch":
        """Add the states that enter the split, and side by side behind them those that enter the layers ``taps``."""
        if not taps:
            return replace(self, hidden=states)
        dim = states.shape[-1] // (1 + len(taps))
        hidden, tapped = states[..., :dim].contiguous(), states[..., dim:].contiguous()  # what is pinned or copied is whole
        return replace(self, hidden=hidden, taps=tapped, tap_layers=tuple(taps))

    def tap(self, layer: int) -> Float[Tensor, "batch seq dim"]:
        """Give the states that enter a layer.

        Raises:
            ValueError: the batch came without them.
        """
        if self.taps is None or layer not in self.tap_layers:
            raise ValueError(
                f"the refiner reads the states that enter layer {layer}, this batch has those of {list(self.tap_layers)}"
            )
        return self.taps.chunk(len(self.tap_layers), -1)[self.tap_layers.index(layer)]

    @property
    def passes(self) -> tuple["Batch", ...]:
        """This batch and those of the later denoising passes."""
        return (self, *(self.later or ()))

    @property
    def present(self) -> Bool[Tensor, "batch seq"]:
        """True where a position holds a token, False for padding, also where no sequence is padded."""
        return torch.ones_like(self.masked) if self.attention is None else self.attention

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
        later = self._later(lambda batch: batch.take(rows))
        return replace(self, rows=None, later=later)._only(lambda value: value[rows])

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies while it computes; torch's loaders know it by this name."""
        return self._each(lambda value: value.pin_memory() if value.device.type == "cpu" else value)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(self, later=self._later(lambda batch: batch._each(change)))._only(change)

    def _later(self, change: Callable[["Batch"], "Batch"]) -> tuple["Batch", ...] | None:
        return None if self.later is None else tuple(change(batch) for batch in self.later)

    def _only(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        present = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in present.items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return self.tokens.shape[0]
