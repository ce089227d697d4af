"""RefinedLM: backbone tail + refiner + readout as one module; what warmup and joint train and evaluate runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from components.backbones.backbone import BackboneModel
from components.backbones.taps import numbered
from components.batch import Batch
from components.model import Model
from components.nn.key_value_cache import KeyValueCache
from components.recursion import State, Tree
from components.refiners.core import Core, Inputs, Layout, causal_mask


class RefinedLM(Model):
    """A backbone (whole, or its tail alone) whose last states are refined before the frozen norm and head read them.

    Raises:
        ValueError: the refiner's width is not the backbone's; it reads heads of layers that are not live, or states of layers that
            the backbone does not have; it remembers passes over a causal backbone, or a part of it does and not the whole.
    """

    def __init__(self, backbone: BackboneModel, refiner: Core) -> None:
        super().__init__()
        widths = refiner.dim, backbone.architecture["dim"]
        if widths[0] != widths[1]:
            raise ValueError(f"the refiner refines states of width {widths[0]}, the backbone's are {widths[1]} wide")
        layers = backbone.architecture["layers"]
        live = range(backbone.first_layer, layers)
        self.context_layers = tuple(layer + layers if layer < 0 else layer for layer in refiner.context_layers)
        if absent := [layer for layer in self.context_layers if layer not in live]:
            raise ValueError(
                f"the refiner reads the heads of backbone layer {absent[0]}, which does not run; above the split are layers "
                f"{list(live)}: cut the backbone lower (extract.run.tail_layers) or choose another layer"
            )
        self.taps = dict(zip(refiner.taps, numbered(refiner.taps, layers), strict=True))
        self.live_taps = tuple(layer for layer in self.taps.values() if layer in live)
        for layer in self.live_taps:
            backbone.entrance(layer)
        if refiner.remembers and backbone.causal:
            raise ValueError(
                "memory is carried over denoising passes, and a causal backbone has none: choose a refiner without (REFINER) or "
                "masked diffusion"
            )
        if not refiner.remembers and any(isinstance(part, Core) and part.remembers for part in refiner.modules()):
            raise ValueError(
                "memory goes around the whole refiner, and here another one is around it: REFINER = @memory.Memory, and what is "
                "outside now as memory.Memory.refiner"
            )
        self.backbone, self.refiner = backbone, refiner

    @property
    def stored_taps(self) -> tuple[int, ...]:
        """List the layers whose entering states must come with each batch, since they do not run here."""
        return tuple(layer for layer in self.taps.values() if layer not in self.live_taps)

    def check_taps(self, stored: Sequence[int]) -> None:
        """Raise ValueError unless the refiner finds with each batch what it reads of layers that do not run here."""
        if missing := [layer for layer in self.stored_taps if layer not in stored]:
            raise ValueError(
                f"the refiner reads the states that enter layer {missing[0]}, below the split, and those of "
                f"{list(stored) or 'no layer'} come with its batches; set TAPS (extract.run.taps, sources.live.taps) to "
                f"{list(self.stored_taps)}"
            )

    @property
    def n_steps(self) -> int:
        """Supervised steps of the refiner."""
        return self.refiner.n_steps

    @n_steps.setter
    def n_steps(self, steps: int) -> None:
        """Set the refiner's own number of supervised steps."""
        self.refiner.n_steps = steps

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Tell whether the refiner begins a denoising pass with what the one before ended with."""
        return self.refiner.remembers

    @property
    def carried_states(self) -> tuple[str, ...]:  # type: ignore[override]
        """Name the states that the refiner may begin elsewhere with."""
        return self.refiner.remembered

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """Return the head of the backbone, which both read out by."""
        return self.backbone.head

    def begin(self, batch: Batch, positions: Bool[Tensor, "batch seq"] | None = None) -> tuple[Tree, Tree, Layout]:
        """Run the tail (from cached hidden states or from the tokens), then what of the refiner is the same at every step."""
        with self.backbone.entering(self.live_taps) as entering:
            x, heads = self.backbone.states_and_heads(batch, self.context_layers)
        confidence = self._confidence(x, batch) if self.refiner.needs_confidence else None
        layout = Layout(batch.attention, positions, past=causal_mask(x) if self.backbone.causal else None)
        if (cache := batch.cache) is not None:
            layout = replace(layout, places=cache.now, past=cache.visible(), cache=cache)
        dtype = next(self.refiner.parameters()).dtype  # float32 beside a backbone that computes in half precision
        embedding = self.backbone.embed(batch.tokens) if cache is None else self.backbone.embed(batch.tokens, cache.now)
        x, embedding = x.to(dtype), embedding.to(dtype)
        inputs = Inputs(x, embedding, None if heads is None else heads.to(dtype), confidence, self._tapped(batch, entering, dtype))
        condition = self.refiner.condition(inputs, layout)
        return condition, self.refiner.initial_carry(x, condition), layout

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Run one step of the refiner."""
        return self.refiner.step(number, carry, condition, layout, statistics)

    def recalled(self, carry: Tree, memory: Tree) -> Tree:
        """Let the refiner mix what the pass before ended with into the fresh carry."""
        return self.refiner.recalled(carry, memory)

    def normed(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Put states through the backbone's own final norm."""
        return self.backbone.normed(state)

    def key_value_cache(self) -> KeyValueCache | None:
        """Make a cache that the refiner shares with the backbone, if both can go on from one."""
        return self.backbone.key_value_cache() if self.refiner.incremental else None

    def compile_targets(self) -> list[nn.Module]:
        """List the refiner's modules that are worth compiling."""
        return self.refiner.compile_targets()

    def shard_units(self) -> list[tuple[nn.Module, str]]:
        """List the backbone's: a refiner's weights serve every step."""
        return self.backbone.shard_units()

    def _tapped(self, batch: Batch, entering: Mapping[int, Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
        """States of the refiner's taps, by its own names for them: read as the backbone ran, or stored with the batch."""
        states = {name: entering[layer] if layer in entering else batch.tap(layer) for name, layer in self.taps.items()}
        return {name: self.backbone.placed(tap, batch.cache).to(dtype) for name, tap in states.items()}

    @torch.no_grad()
    def _confidence(self, x: Float[Tensor, "batch seq dim"], batch: Batch) -> Float[Tensor, "batch seq"]:
        """The backbone's largest probability where tokens are masked, 1 where they are known."""
        confidence = torch.ones(batch.masked.numel(), device=x.device)
        confidence[batch.supervised] = self.confidence(x, batch)
        return rearrange(confidence, "(batch seq) -> batch seq", batch=len(batch))
