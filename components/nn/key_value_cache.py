"""KeyValueCache: what tokens leave for others to look back at, so that a causal model reads each token once.

Rows are read together though their texts differ in length: tokens stand in *slots*, side by side, and a row that is read less of at
a time leaves slots without a token. Where a token stands in its own sequence, its place, is kept beside.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeyValueCache:
    """Keys, values and whatever else a pass looks back at. Each pass does so in the same order: an entry is known by its turn.

    Args:
        library: cache of another library's model, which keeps its own layers' keys and values in the same slots; it can select rows
            (``batch_select_indices``) and drop slots (``crop``). None = there is no such model.
        causal: no token sees those in later slots.

    Attributes:
        places: where the token of each slot stands in its sequence.
        tokens: which slots hold a token.
        new: how many slots, the last ones, the present pass reads.
    """

    def __init__(self, library: Any = None, causal: bool = True) -> None:
        self.library, self.causal = library, causal
        self.places: Int[Tensor, "batch slots"] = torch.empty(0)
        self.tokens: Bool[Tensor, "batch slots"] = torch.empty(0)
        self.new = 0
        self._entries: list[Tensor] = []
        self._turn = 0

    def admit(self, places: Int[Tensor, "batch new"], tokens: Bool[Tensor, "batch new"]) -> None:
        """Begin a pass over tokens at these places; where ``tokens`` is False there is none."""
        first = not self.new
        self.places = places if first else torch.cat([self.places, places], 1)
        self.tokens = tokens if first else torch.cat([self.tokens, tokens], 1)
        self.new, self._turn = places.shape[1], 0

    @property
    def now(self) -> Int[Tensor, "batch new"]:
        """Where the tokens of the present pass stand."""
        return self.places[:, -self.new :]

    def visible(self) -> Bool[Tensor, "batch 1 new slots"]:
        """Which slots each new one may look at: those that hold a token, of a causal model up to itself."""
        slots = self.tokens.shape[1]
        if not self.causal:
            return rearrange(self.tokens, "b s -> b 1 1 s").expand(-1, -1, self.new, -1)
        up_to_itself = torch.ones(self.new, slots, dtype=torch.bool, device=self.tokens.device).tril(slots - self.new)
        return rearrange(self.tokens, "b s -> b 1 1 s") & up_to_itself

    def extended(self, new: Float[Tensor, "batch *heads new width"]) -> Float[Tensor, "batch *heads slots width"]:
        """Keep what the new tokens leave at this turn, and return it behind what those before them left."""
        if self._turn == len(self._entries):
            self._entries.append(new)
        else:
            self._entries[self._turn] = torch.cat([self._entries[self._turn], new], -2)
        self._turn += 1
        return self._entries[self._turn - 1]

    def before(self, entry: Float[Tensor, "batch slots width"]) -> Float[Tensor, "batch 1 width"]:
        """What of an entry the token left that stands one place before the first new one; at place 0 that one's own."""
        first = self.places[:, -self.new, None]
        same = (self.places == (first - 1).clamp(min=0)) & self.tokens
        slot = same.int().argmax(1)
        return entry[torch.arange(len(entry), device=entry.device), slot][:, None]

    def hide(self, slots: Bool[Tensor, "batch slots"]) -> None:
        """Treat these slots as if no token were in them."""
        self.tokens = self.tokens & ~slots

    def crop(self, slots: int) -> None:
        """Drop this many slots, the last ones."""
        most = self.tokens.shape[1] - slots
        self.places, self.tokens = self.places[:, :most], self.tokens[:, :most]
        self._entries = [entry[..., :most, :] for entry in self._entries]
        if self.library is not None and slots:
            self.library.crop(-slots)

    def take(self, rows: Int[Tensor, "some"]) -> None:
        """Go on with these rows alone."""
        self.places, self.tokens = self.places[rows], self.tokens[rows]
        self._entries = [entry[rows] for entry in self._entries]
        if self.library is not None:
            self.library.batch_select_indices(rows)
