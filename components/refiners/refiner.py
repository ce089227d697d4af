"""SlotRefiner: the recursive head that turns frozen hidden states into better ones, one small step at a time.

One step: attention reads the state -> four slots -> delta network -> confidence-weighted update. The same weights serve every
step. Notable: with the default update the output layer starts at zero, so at initialisation the refined states *are* the
backbone's states and every gain is the refiner's; x (the backbone's states) and the frozen token embeddings enter at every step,
without which the recursion has nothing to check its guesses against.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.nn.attention import Attention, Block
from components.recursion import State
from components.refiners import delta
from components.refiners.core import Core, Injection, Inputs, Layout, uniform_, zeros_
from components.refiners.orthogonality import mean, mean_square, overlap
from components.refiners.slots import NAMES, Slots


class SlotRefiner(Core):
    """Slot-based recursive refiner on hidden states of width ``dim``.

    Args:
        dim: width of the backbone's hidden states.
        heads: attention heads of a refiner block.
        steps: recursion steps K, the same in training and evaluation.
        blocks: transformer blocks per step (weights shared over steps). The slots read the last one's heads, so what would
            follow them there (output projection, MLP) is left out: nothing would use it.
        mlp_ratio: width of a block's MLP over ``dim``.
        delta_ratio: width of the delta network's hidden layer over ``dim``.
        widths: slot widths by name; None = d/2, d/4, d/4, d/8.
        design: "residual" = states enter as they are, x and the token embeddings are injected at every step, the update is
            zero at first and scaled by the states' rms; "literal" = the founding design: LayerNorm entry, no injection,
            0.1 tanh(delta) clamped to +-0.5.
        rotary: attention also sees distances (``components.nn.attention.rotate``); what the backbone has is a good choice.
        orthogonality: weight of the slots' overlap in each step's loss (``components.refiners.orthogonality``).
        context_layers: backbone layers (-1 = the last) whose concatenated head outputs are the context slot's source, instead of
            the refiner's own attention; they must be live, that is, not below the split of the shards.

    Raises:
        ValueError: widths or heads do not fit ``dim`` (the message names the numbers).
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        steps: int = 4,
        blocks: int = 1,
        mlp_ratio: int = 4,
        delta_ratio: int = 4,
        widths: Mapping[str, int] | None = None,
        design: Literal["residual", "literal"] = "residual",
        orthogonality: float = 0.0,
        rotary: bool = False,
        context_layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or blocks < 1:
            raise ValueError(f"the refiner needs at least 1 step and 1 block, got steps {steps} and blocks {blocks}")
        if design not in ("residual", "literal"):
            raise ValueError(f"design must be 'residual' or 'literal', got '{design}'")
        self.architecture = {
            "core": "SlotRefiner", "dim": dim, "heads": heads, "steps": steps, "blocks": blocks,
            "mlp_ratio": mlp_ratio, "delta_ratio": delta_ratio,
            "widths": None if widths is None else dict(widths), "design": design, "orthogonality": orthogonality,
            "rotary": rotary, "context_layers": None if context_layers is None else list(context_layers),
        }  # fmt: skip
        self.dim, self.n_steps, self.orthogonality = dim, steps, orthogonality
        residual = design == "residual"
        self.entry = nn.Identity() if residual else nn.LayerNorm(dim)
        self.state_norm = nn.LayerNorm(dim, bias=False) if residual else None
        self.injection = Injection(dim) if residual else None
        self.context_layers = tuple(context_layers or ())
        self.bound = delta.rms_scaled if residual else delta.clamped
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, rotary) for _ in range(blocks - 1))
        self.attention_norm, self.attention = nn.LayerNorm(dim, bias=False), Attention(dim, heads, rotary)
        self.slots = Slots(dim, widths, dim * len(self.context_layers) or dim)
        self.confidence = nn.Linear(self.slots.widths["confidence"], 1)
        self.delta_in = nn.Linear(self.slots.total, delta_ratio * dim)
        self.delta_out = nn.Linear(delta_ratio * dim, dim)
        self.hidden_rms: Tensor
        self.register_buffer("hidden_rms", torch.ones(()))

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Linear layers U(+-1/sqrt(fan-in)); blocks as in ``Block``; gates 0.5; the delta network's output 0 if residual.

        Args:
            hidden_rms: root mean square of the backbone's hidden states: the unit of an update.
            generator: the only source of randomness.
        """
        uniform_(self, generator)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.init_weights(0.3 * self.dim**-0.5, generator)
        nn.init.normal_(self.attention.qkv.weight, std=0.7 * self.dim**-0.5, generator=generator)
        if self.injection is not None:  # with LayerNorm entry the states have rms 1, and the literal design starts anywhere
            self.hidden_rms.fill_(hidden_rms)
            zeros_(self.delta_out)

    def condition(self, inputs: Inputs, layout: Layout) -> dict[str, Tensor]:
        """x itself, what of it every step sees, and the backbone's heads if they are the context."""
        injected = {} if self.injection is None else {"injected": self.injection(inputs.x, inputs.embedding)}
        if not self.context_layers:
            return {"x": inputs.x, **injected}
        if inputs.heads is None:
            raise ValueError(f"the refiner reads the heads of backbone layers {list(self.context_layers)}, and was given none")
        return {"x": inputs.x, **injected, "heads": inputs.heads}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states; no context yet."""
        return {"hidden": self.entry(hidden)}

    def forward(
        self, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool = False
    ) -> State:
        """One step: attention -> slots -> delta network -> confidence-weighted update."""
        hidden = layout.kept(carry["hidden"], condition["x"])
        u = hidden if self.state_norm is None else self.state_norm(hidden) + condition["injected"]
        visible = layout.visible(u)
        for block in self.blocks:
            u = block(u, visible, layout.places)
        context = self.attention(self.attention_norm(u), visible, layout.places)
        slots = self.slots(context, carry.get("context"), self._variance(hidden), condition.get("heads", context))
        gated = self.slots.gated(slots)
        confidence = torch.sigmoid(self.confidence(gated["confidence"]))
        proposed = self.delta_out(F.gelu(self.delta_in(torch.cat([gated[name] for name in NAMES], -1))))
        update = confidence * self.bound(proposed, self.hidden_rms)
        refined = layout.kept(hidden + update, condition["x"])
        return State(
            refined,
            {"hidden": refined, "context": context},
            self._measure(slots, confidence, update, layout.attention) if statistics else {},
            self.orthogonality * overlap(slots, layout.attention) if self.orthogonality else None,
        )

    def _variance(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """log(1 + squared deviation of each channel from the token's mean), in units of ``hidden_rms``."""
        scaled = hidden / self.hidden_rms
        return torch.log1p((scaled - scaled.mean(-1, keepdim=True)).square())

    @torch.no_grad()
    def _measure(
        self, slots: Mapping[str, Tensor], confidence: Tensor, update: Tensor, attention: Tensor | None
    ) -> dict[str, Tensor]:
        """0-d tensors over unpadded positions, still on the device: reading them is left to whoever logs."""
        gates = self.slots.gates()
        return {
            **{f"slot/{name}": mean_square(slots[name], attention).sqrt() for name in NAMES},
            **{f"gate/{name}": gates[i] for i, name in enumerate(NAMES)},
            "confidence": mean(confidence, attention),
            "delta": mean_square(update, attention).sqrt(),
            "overlap": overlap(slots, attention),
        }


def chunk_positions(chunks: Bool[Tensor, "batch chunks"], seq: int) -> Bool[Tensor, "batch seq"]:
    """Spread a per-chunk refinement mask over positions: equal chunks, True = refine.

    >>> chunk_positions(torch.tensor([[True, False]]), 4)
    tensor([[ True,  True, False, False]])

    Raises:
        ValueError: the chunks do not divide the sequence.
    """
    n = chunks.shape[1]
    if seq % n:
        raise ValueError(f"{n} chunks do not divide a sequence of {seq} tokens ({seq / n:g} tokens a chunk)")
    return repeat(chunks, "b c -> b (c s)", s=seq // n)
