"""The built-in backbone: a small bidirectional transformer trained by masked diffusion.

Any layer is a place to cut: ``embed`` and the layers below the split are the *trunk*, the layers above it with the final norm
and head are the *tail*. A model built with ``first_layer > 0`` holds the tail alone (and the embedding table, which the refiner
reads), which is what training from cached states needs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.attention import Block, RMSNorm
from components.batch import Batch
from components.model import Model
from components.recursion import State


class TinyLM(Model):
    """Masked-diffusion language model: learned positions, pre-norm blocks, final norm, untied head.

    Args:
        vocab: number of token ids, the mask and padding ids included.
        seq: longest sequence, in tokens.
        dim: width.
        layers: blocks of the whole model.
        heads: attention heads; must divide ``dim``.
        rotary: attention also sees distances (``components.attention.rotate``): text wants it, puzzles do not need it.
        first_layer: lowest block held here (0 = whole model).

    Raises:
        ValueError: heads do not divide dim, or ``first_layer`` is not within 0..layers.
    """

    def __init__(self, vocab: int, seq: int, dim: int, layers: int, heads: int, rotary: bool = False, first_layer: int = 0) -> None:
        super().__init__()
        if not 0 <= first_layer <= layers:
            raise ValueError(f"the split must lie within 0..{layers} (the backbone's layers), got {first_layer}")
        self.architecture: dict[str, Any] = {
            "vocab": vocab,
            "seq": seq,
            "dim": dim,
            "layers": layers,
            "heads": heads,
            "rotary": rotary,
        }
        self.first_layer = first_layer
        self.embedding = nn.Embedding(vocab, dim)
        self.positions = nn.Parameter(torch.zeros(seq, dim))
        self.blocks = nn.ModuleDict({str(i): Block(dim, heads, rotary=rotary) for i in range(first_layer, layers)})
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Embeddings and positions N(0, 0.02^2); residual projections N(0, 0.02^2 / 2 layers); head N(0, 1 / dim)."""
        nn.init.normal_(self.embedding.weight, std=0.02, generator=generator)
        nn.init.normal_(self.positions, std=0.02, generator=generator)
        nn.init.normal_(self.head.weight, std=self.head.in_features**-0.5, generator=generator)
        for block in self.blocks.values():
            assert isinstance(block, Block)
            block.init_weights(0.02 / (2 * self.architecture["layers"]) ** 0.5, generator)

    def embed(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """Token embedding plus position: a table look-up, no layer runs."""
        return self.embedding(tokens) + self.positions[: tokens.shape[1]]

    def layers(
        self, x: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"] | None, start: int, stop: int
    ) -> Float[Tensor, "batch seq dim"]:
        """Run blocks ``start..stop-1``.

        Raises:
            ValueError: this model does not hold them.
        """
        if start < stop and not self.first_layer <= start <= stop <= self.architecture["layers"]:
            held = f"{self.first_layer}..{self.architecture['layers'] - 1}"
            raise ValueError(f"this model holds layers {held}; it cannot run layers {start}..{stop - 1}")
        for i in range(start, stop):
            x = self.blocks[str(i)](x, attention)
        return x

    def trunk(
        self, tokens: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None, split: int
    ) -> Float[Tensor, "batch seq dim"]:
        """States entering layer ``split``: what extract stores."""
        return self.layers(self.embed(tokens), attention, 0, split)

    def tail(
        self, hidden: Float[Tensor, "batch seq dim"], attention: Bool[Tensor, "batch seq"] | None, split: int
    ) -> Float[Tensor, "batch seq dim"]:
        """States after the last layer (before the final norm) from the states entering layer ``split``."""
        return self.layers(hidden, attention, split, self.architecture["layers"])

    def readout(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of states: the head after the final norm. Gather the rows you need first; the head is the cost."""
        return self.head(self.norm(state))

    def steps(self, batch: Batch, *, statistics: bool = False) -> Iterator[State]:
        """One state: a backbone alone is a recursion of one step, so every phase shares one training loop."""
        yield State(self.states(batch))

    def states(self, batch: Batch) -> Float[Tensor, "batch seq dim"]:
        """Last states of a batch: from its cached hidden states if it has any, else from its tokens."""
        if batch.hidden is None:
            return self.trunk(batch.tokens, batch.attention, self.architecture["layers"])
        return self.tail(batch.hidden.to(self.norm.weight.dtype), batch.attention, self.first_layer)
