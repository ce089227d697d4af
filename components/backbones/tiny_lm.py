"""The built-in backbone: a small bidirectional transformer trained by masked diffusion.

Any layer is a place to cut: ``embed`` and the layers below the split are the *trunk*, the layers above it with the final norm
and head are the *tail*. A model built with ``first_layer > 0`` holds the tail alone (and the embedding table, which the refiner
reads), which is what training from cached states needs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.backbones.backbone import BackboneModel
from components.backbones.positions import Apart, Positions
from components.batch import Batch
from components.nn.attention import Block, RMSNorm
from components.nn.key_value_cache import KeyValueCache
from components.ranges import Layers, PositiveInt
from components.refiners.core import Layout

APART = Apart()


class TinyLM(BackboneModel):
    """Masked-diffusion language model: learned positions, pre-norm blocks, final norm, untied head.

    Args:
        vocab: number of token ids, the mask and padding ids included.
        seq: longest sequence, in tokens.
        dim: width.
        layers: blocks of the whole model.
        heads: attention heads; must divide ``dim``.
        rotary: attention also sees distances (``components.nn.attention.rotate``): text wants it, puzzles do not need it.
        first_layer: lowest block held here (0 = whole model).
        positions: how they begin (``components.backbones.positions``).

    Raises:
        ValueError: heads do not divide dim, ``first_layer`` is not within 0..layers, or a grid has other positions.
    """

    def __init__(
        self,
        vocab: int,
        seq: int,
        dim: PositiveInt,
        layers: Layers,
        heads: PositiveInt,
        rotary: bool = False,
        first_layer: int = 0,
        positions: Positions = APART,
    ) -> None:
        super().__init__()
        if not 0 <= first_layer <= layers:
            raise ValueError(f"the split must lie within 0..{layers} (the backbone's layers), got {first_layer}")
        self.architecture: dict[str, Any] = {
            "model": "TinyLM",
            "vocab": vocab,
            "seq": seq,
            "dim": dim,
            "layers": layers,
            "heads": heads,
            "rotary": rotary,
        }
        self.first_layer = first_layer
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(vocab, dim), freeze=False)  # a draw imports the compiler
        self.positions = nn.Parameter(torch.zeros(seq, dim))
        self._begin_positions = positions
        positions.check(seq)
        self.blocks = nn.ModuleDict({str(i): Block(dim, heads, rotary=rotary) for i in range(first_layer, layers)})
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Embeddings and positions N(0, 0.02^2); residual projections N(0, 0.02^2 / 2 layers); head N(0, 1 / dim)."""
        nn.init.normal_(self.embedding.weight, std=0.02, generator=generator)
        self._begin_positions(self.positions, 0.02, generator)
        nn.init.normal_(self.head.weight, std=self.head.in_features**-0.5, generator=generator)
        for block in self.blocks.values():
            assert isinstance(block, Block)
            block.init_weights(0.02 / (2 * self.architecture["layers"]) ** 0.5, generator)

    def embed(
        self, tokens: Int[Tensor, "batch seq"], places: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Token embedding plus position: a table look-up, no layer runs."""
        return self.embedding(tokens) + (self.positions[: tokens.shape[1]] if places is None else self.positions[places])

    def layers(
        self,
        x: Float[Tensor, "batch seq dim"],
        attention: Bool[Tensor, "batch seq"] | None,
        start: int,
        stop: int,
        heads_of: Sequence[int] = (),
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq context"] | None]:
        """Run blocks ``start..stop-1``; also returns the concatenated head outputs of the chosen ones, None if none is chosen.

        Raises:
            ValueError: this model does not hold them.
        """
        if start < stop and not self.first_layer <= start <= stop <= self.architecture["layers"]:
            span = f"{self.first_layer}..{self.architecture['layers'] - 1}"
            raise ValueError(f"this model holds layers {span}; it cannot run layers {start}..{stop - 1}")
        places = None if cache is None else cache.now
        heads, visible = {}, Layout(attention).visible(x) if cache is None else cache.visible()
        for i in range(start, stop):
            block = self.blocks[str(i)]
            assert isinstance(block, Block)
            x, heads[i] = block.with_heads(x, visible, places, cache)
        return x, torch.cat([heads[i] for i in heads_of], -1) if heads_of else None

    def trunk(
        self, tokens: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None, split: int
    ) -> Float[Tensor, "batch seq dim"]:
        """States entering layer ``split``: what extract stores."""
        return self.layers(self.embed(tokens), attention, 0, split)[0]

    def states_and_heads(
        self, batch: Batch, layers: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq context"] | None]:
        """Last states, before the final norm, and what chosen layers' heads said."""
        last = self.architecture["layers"]
        if batch.hidden is None:
            places = None if batch.cache is None else batch.cache.now
            return self.layers(self.embed(batch.tokens, places), batch.attention, 0, last, layers, batch.cache)
        hidden = batch.hidden.to(self.norm.weight.dtype)
        return self.layers(hidden, batch.attention, self.first_layer, last, layers)

    def entrance(self, layer: int) -> nn.Module:
        """Find the first norm of a block."""
        block = self.blocks[str(layer)]
        assert isinstance(block, Block)
        return block.attention_norm

    def shard_units(self) -> list[tuple[nn.Module, str]]:
        """List the blocks that are held here."""
        return [(block, "with_heads") for block in self.blocks.values()]

    def key_value_cache(self) -> KeyValueCache | None:
        """Make a cache, if the model is whole."""
        return None if self.first_layer else KeyValueCache(causal=False)

    def normed(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Put states through the final norm."""
        normed: Tensor = self.norm(state)
        return normed
