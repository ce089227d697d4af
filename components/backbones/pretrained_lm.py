"""PretrainedLM: somebody else's transformer as a backbone. Its own forward runs; ``components.backbones.layers`` keeps some
layers out of it.

Notable: logits may be shifted (Dream: the state at i - 1 predicts token i). The shift is made on the last states, so
that everything after them, refiner, loss and decoding, sees the state of a token at the token's own place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.backbones.backbone import BackboneModel
from components.backbones.layers import Layers, Parts, emptied
from components.batch import Batch
from components.nn.key_value_cache import KeyValueCache
from components.nn.masters import read_dtype
from components.nn.sharing import twin

ATTENTION = ("attn", "attention")
HEADS_INTO = ("o_proj", "out_proj", "output.dense", "dense", "Wo", "c_proj", "out_lin", "attn.o")


class PretrainedLM(BackboneModel):
    """A model of another library behind the interface of a backbone.

    Args:
        model: called with ``input_ids`` and ``attention_mask``; below ``first_layer`` its layers are empty.
        parts: where it keeps what.
        architecture: of ``build``; with ``dim``, ``layers``, ``vocab`` and ``seq``.
        shift: how many places behind its token a state stands, 0 or 1.
        first_layer: lowest layer held here.
        build: another model of the same architecture from a layer on, without weights; see ``cut``.
        causal: see ``BackboneModel``.
        cache: the library's own cache of keys and values, empty; None = it has none that is exact for rows of different lengths.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Parts,
        architecture: Mapping[str, Any],
        shift: int = 0,
        first_layer: int = 0,
        build: Callable[[int], "PretrainedLM"] | None = None,
        causal: bool = False,
        cache: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.architecture = model, dict(architecture)
        self.shift, self.first_layer = shift, first_layer
        self.build, self.layers, self.causal = build, Layers(model, parts), causal
        self.cache = cache

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """Return the library model's own output layer."""
        output = self.model.get_submodule(self.layers.parts.output)
        assert isinstance(output, nn.Linear)
        return output

    @property
    def dtype(self) -> torch.dtype:
        """Tell the type that the model computes in, whatever the type of its masters."""
        return read_dtype(self.head, "weight")

    def train(self, mode: bool = True) -> "PretrainedLM":
        """The model itself always runs as in evaluation: what is dropped out by chance would not be what was cached."""
        super().train(mode)
        self.model.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "PretrainedLM":
        """What lies on several devices is not moved to one."""
        return self if len({weight.device for weight in self.parameters()}) > 1 else super()._apply(fn, recurse)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw nothing: the weights come with the checkpoint."""

    def cut(self, first_layer: int) -> "PretrainedLM":
        """The same model from ``first_layer`` on; its weights are not set."""
        assert self.build is not None
        return self.build(first_layer)

    def above(self, split: int) -> "PretrainedLM":
        """This very model from layer ``split`` on: its own modules, whose lower layers are empty, and its own tensors."""
        tail = twin(self)
        emptied(tail.model, tail.layers.parts.layers, split)
        tail.first_layer = split
        return tail

    def embed(
        self, tokens: Int[Tensor, "batch seq"], places: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Token embedding alone: where the model adds positions to it, they are left out."""
        embeddings = self.model.get_input_embeddings()  # type: ignore[operator]
        assert isinstance(embeddings, nn.Module)
        return embeddings(tokens)

    def trunk(
        self, tokens: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None, split: int
    ) -> Float[Tensor, "batch seq dim"]:
        """States entering layer ``split``; before any shift.

        Raises:
            ValueError: the trunk is not held here.
        """
        if split == 0:
            raise ValueError("the states entering layer 0 are the embeddings; train a pretrained model whole from its tokens")
        if self.first_layer:
            raise ValueError(f"this model holds layers {self.first_layer}.. only, it cannot run the trunk")
        return self.layers.run(_inputs(tokens, attention), 0, split)[0].to(tokens.device)

    def states_and_heads(
        self, batch: Batch, layers: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq context"] | None]:
        """Last states, before what the output layer's own norm makes of them, and what chosen layers' heads said."""
        hidden, start = batch.hidden, self.first_layer
        if hidden is None and start:
            raise ValueError(f"this model holds layers {start}.. only, it needs the states that enter them")
        if hidden is not None:
            hidden = hidden.to(self.dtype)
        inside = {layer: self._heads(layer) for layer in layers}
        inputs = _inputs(batch.tokens, batch.attention) if batch.cache is None else _further(batch.tokens, batch.cache)
        states, head_inputs = self.layers.run(inputs, 0 if hidden is None else start, None, hidden, inside)
        heads = torch.cat([head_inputs[layer] for layer in layers], -1) if layers else None
        return self.placed(states, batch.cache), None if heads is None else self.placed(heads, batch.cache)

    def entrance(self, layer: int) -> nn.Module:
        """Find a layer of the library's model."""
        return self.layers.blocks[layer]

    def shard_units(self) -> list[tuple[nn.Module, str]]:
        """List the layers of the library's model that are held here."""
        return [(layer, "forward") for layer in self.layers.blocks[self.first_layer :]]

    def placed(
        self, states: Float[Tensor, "batch seq width"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "batch seq width"]:
        """Put states where the tokens stand that they predict, and on the head's device."""
        states = states.to(next(self.head.parameters()).device)
        if not self.shift:
            return states
        before = states[:, :1] if cache is None else cache.before(cache.extended(states))
        return torch.cat([before, states[:, :-1]], 1)

    def key_value_cache(self) -> KeyValueCache | None:
        """Make a cache around the library's own, if the model is whole."""
        return None if self.cache is None or self.first_layer else KeyValueCache(self.cache(), self.causal)

    def normed(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """What the model puts between its last layer and the output layer; in its own precision, whatever refined the states."""
        return self.layers.features(state.to(self.dtype))

    def _heads(self, layer: int) -> str:
        """Path within a layer of the projection that its concatenated heads go into.

        Raises:
            ValueError: no such name is known.
        """
        paths = [path for path, module in self.layers.blocks[layer].named_modules() if getattr(module, "weight", None) is not None]
        for name in HEADS_INTO:
            for path in paths:
                if path.endswith(f".{name}") and any(word in path.lower() for word in ATTENTION):
                    return path
        raise ValueError(f"layer {layer} has no output projection of its heads by a known name; it has {', '.join(paths)}")


def _inputs(tokens: Tensor, attention: Tensor | None) -> dict[str, Any]:
    """Arguments of the model's forward; on the meta device with a finished mask, for the library would look at another's values."""
    arguments: dict[str, Any] = {"input_ids": tokens.long()}
    if tokens.is_meta:
        batch, seq = tokens.shape
        return {**arguments, "attention_mask": torch.empty(batch, 1, seq, seq, dtype=torch.bool, device="meta")}
    return arguments if attention is None else {**arguments, "attention_mask": attention.long()}


def _further(tokens: Tensor, cache: KeyValueCache) -> dict[str, Any]:
    """Arguments of the model's forward where it goes on from a cache."""
    return {
        "input_ids": tokens.long(), "attention_mask": cache.tokens.long(), "position_ids": cache.now,
        "past_key_values": cache.library, "use_cache": True,
    }  # fmt: skip
