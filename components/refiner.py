"""SlotRefiner: the recursive head that turns frozen hidden states into better ones, one small step at a time.

One step: attention reads the state -> four slots -> delta network -> confidence-weighted update. The same weights serve every
step. Notable: with the default update the output layer starts at zero, so at initialisation the refined states *are* the
backbone's states and every gain is the refiner's; x (the backbone's states) and the frozen token embeddings enter at every step,
without which the recursion has nothing to check its guesses against.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from components import delta
from components.attention import Attention, Block
from components.orthogonality import mean, mean_square, overlap
from components.recursion import Recursion, State, full_gradient
from components.slots import NAMES, Slots


class Injection(nn.Module):
    """What every step sees besides its own state: x and the token embeddings, each normed and projected."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.state_norm, self.x_norm = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.project_x, self.project_embedding = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def prepare(
        self, x: Float[Tensor, "batch seq dim"], embedding: Float[Tensor, "batch seq dim"]
    ) -> Float[Tensor, "batch seq dim"]:
        """The part that is the same at every step."""
        return self.project_x(self.x_norm(x)) + self.project_embedding(F.rms_norm(embedding, embedding.shape[-1:]))

    def forward(
        self, hidden: Float[Tensor, "batch seq dim"], prepared: Float[Tensor, "batch seq dim"]
    ) -> Float[Tensor, "batch seq dim"]:
        return self.state_norm(hidden) + prepared


class SlotRefiner(nn.Module):
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
        rotary: attention also sees distances (``components.attention.rotate``); what the backbone has is a good choice.
        orthogonality: weight of the slots' overlap in each step's loss (``components.orthogonality``).

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
    ) -> None:
        super().__init__()
        if steps < 1 or blocks < 1:
            raise ValueError(f"the refiner needs at least 1 step and 1 block, got steps {steps} and blocks {blocks}")
        if design not in ("residual", "literal"):
            raise ValueError(f"design must be 'residual' or 'literal', got '{design}'")
        self.architecture = {
            "dim": dim, "heads": heads, "steps": steps, "blocks": blocks, "mlp_ratio": mlp_ratio, "delta_ratio": delta_ratio,
            "widths": None if widths is None else dict(widths), "design": design, "orthogonality": orthogonality,
            "rotary": rotary,
        }  # fmt: skip
        self.dim, self.n_steps, self.orthogonality = dim, steps, orthogonality
        residual = design == "residual"
        self.entry = nn.Identity() if residual else nn.LayerNorm(dim)
        self.injection = Injection(dim) if residual else None
        self.bound = delta.rms_scaled if residual else delta.clamped
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, rotary) for _ in range(blocks - 1))
        self.attention_norm, self.attention = nn.LayerNorm(dim, bias=False), Attention(dim, heads, rotary)
        self.slots = Slots(dim, widths)
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
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.init_weights(0.3 * self.dim**-0.5, generator)
        nn.init.normal_(self.attention.qkv.weight, std=0.7 * self.dim**-0.5, generator=generator)
        if self.injection is not None:  # with LayerNorm entry the states have rms 1, and the literal design starts anywhere
            self.hidden_rms.fill_(hidden_rms)
            nn.init.zeros_(self.delta_out.weight)
            nn.init.zeros_(self.delta_out.bias)

    def refine(
        self,
        x: Float[Tensor, "batch seq dim"],
        embedding: Float[Tensor, "batch seq dim"],
        attention: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Bool[Tensor, "batch seq"] | None = None,
        recursion: Recursion = full_gradient,
        steps: int | None = None,
        statistics: bool = False,
    ) -> Iterator[State]:
        """Yield the state after each step.

        Args:
            x: hidden states to refine.
            embedding: the frozen token embeddings (with positions) of the same tokens.
            attention: False at padding.
            positions: True where states may change; elsewhere they come out bit-identical to ``x``. None = everywhere.
            recursion: how the gradient flows (``components.recursion``).
            steps: another number of steps than the refiner's own.
            statistics: also measure slots, gates, confidence and update (no host sync).

        Raises:
            ValueError: fewer than one step.
        """
        n_steps = self.n_steps if steps is None else steps
        if n_steps < 1:
            raise ValueError(f"the recursion needs at least 1 step, got {n_steps}")
        injected = None if self.injection is None else self.injection.prepare(x, embedding)

        def kept(new: Tensor) -> Tensor:
            return new if positions is None else torch.where(positions[..., None], new, x)

        def step(state: State) -> State:
            update, context, slots, confidence = self._update(state, injected, attention)
            return State(
                hidden=kept(state.hidden + update),
                context=context,
                statistics=self._measure(slots, confidence, update, attention) if statistics else {},
                penalty=self.orthogonality * overlap(slots, attention) if self.orthogonality else None,
            )

        yield from recursion(step, State(kept(self.entry(x))), n_steps)

    def _update(
        self, state: State, injected: Tensor | None, attention: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        """One step: the update, and the context, slots and confidence it came from."""
        u = state.hidden if self.injection is None or injected is None else self.injection(state.hidden, injected)
        for block in self.blocks:
            u = block(u, attention)
        context = self.attention(self.attention_norm(u), attention)
        slots = self.slots(context, state.context, self._variance(state.hidden))
        gated = self.slots.gated(slots)
        confidence = torch.sigmoid(self.confidence(gated["confidence"]))
        proposed = self.delta_out(F.gelu(self.delta_in(torch.cat([gated[name] for name in NAMES], -1))))
        return confidence * self.bound(proposed, self.hidden_rms), context, slots, confidence

    def _variance(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """log(1 + squared deviation of each channel from the token's mean), in units of ``hidden_rms``."""
        scaled = hidden / self.hidden_rms
        return torch.log1p((scaled - scaled.mean(-1, keepdim=True)).square())

    def _measure(
        self, slots: Mapping[str, Tensor], confidence: Tensor, update: Tensor, attention: Tensor | None
    ) -> dict[str, Tensor]:
        """0-d tensors over unpadded positions, still on the device: reading them is left to whoever logs."""
        gates = self.slots.gates().detach()
        return {
            **{f"slot/{name}": mean_square(slots[name], attention).sqrt() for name in NAMES},
            **{f"gate/{name}": gates[i] for i, name in enumerate(NAMES)},
            "confidence": mean(confidence.detach(), attention),
            "delta": mean_square(update, attention).sqrt(),
            "overlap": overlap({name: slot.detach() for name, slot in slots.items()}, attention),
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
