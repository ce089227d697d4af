"""RecursiveCore: two states and one small network. z_L thinks with the question in view, z_H holds the answer.

One cycle: z_L <- f(z_L + z_H + question), ``l_cycles`` times; then z_H <- f(z_H + z_L). Both updates share f. A supervised step is
``h_cycles`` cycles, so that one step with several cycles is the Tiny Recursive Model's, and one cycle a step is supervision at
every H cycle. Works on a frozen backbone's states (``standalone=False``: the answer is a change of them, none at first) and as a
model's only body (``standalone=True``: the question is the embedded input, the answer is z_H itself).

Source: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks" (2025), sections 4.1 to 4.6 and figure 3.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.ranges import Depth, PositiveFloat, PositiveInt
from components.recursion import State
from components.refiners.core import Core, Injection, Inputs, Layout, uniform_, zeros_
from components.refiners.recursive_network import RecursiveNetwork
from components.refiners.statistics import mean_square

PARTS = 2  # of the batch that an update is made again in


class RecursiveCore(Core):
    """Two-state recursion over hidden states or embeddings of width ``dim``.

    Args:
        dim: width.
        heads: attention heads of a block; must divide ``dim``.
        steps: supervised steps.
        blocks: transformer blocks of the shared network f.
        expansion: width of a block's SwiGLU over 2/3 ``dim``.
        h_cycles: cycles of a supervised step.
        l_cycles: updates of z_L in a cycle.
        gradient_cycles: last cycles of a step that the gradient flows through, 1 in the paper; None = all.
        supervise: "steps" = z_H after every ``h_cycles`` cycles; "updates" = whatever was updated, after every update of z_L and
            z_H: ``steps * h_cycles * (l_cycles + 1)`` supervised steps.
        standalone: see above.
        halting: also learn when a sequence is right (``State.halt``).
        rotary: attention sees distances.
        keep: what the backward pass finds of an update: its "graph", or the "states" that went in, from which it runs once more,
            half the batch at a time: about a third more time for an eighth of the memory (``bench.cores``).

    Raises:
        ValueError: sizes that do not fit (the message names the numbers).
    """

    incremental = True
    remembered = ("z_H", "z_L")

    def __init__(
        self,
        dim: int,
        heads: PositiveInt = 4,
        steps: Depth = 4,
        blocks: Depth = 2,
        expansion: PositiveFloat = 4.0,
        h_cycles: Depth = 1,
        l_cycles: Depth = 2,
        gradient_cycles: PositiveInt | None = None,
        supervise: Literal["steps", "updates"] = "steps",
        standalone: bool = False,
        halting: bool = False,
        rotary: bool = False,
        keep: Literal["graph", "states"] = "graph",
    ) -> None:
        super().__init__()
        for name, value in {"steps": steps, "blocks": blocks, "h_cycles": h_cycles, "l_cycles": l_cycles}.items():
            if value < 1:
                raise ValueError(f"the recursive core needs at least 1 of {name}, got {value}")
        if gradient_cycles is not None and not 1 <= gradient_cycles <= h_cycles:
            raise ValueError(f"gradient_cycles must lie within 1..h_cycles ({h_cycles}), got {gradient_cycles}")
        if supervise not in ("steps", "updates"):
            raise ValueError(f"supervise must be 'steps' or 'updates', got '{supervise}'")
        if keep not in ("graph", "states"):
            raise ValueError(f"keep must be 'graph' or 'states', got '{keep}'")
        self.architecture = {
            "core": "RecursiveCore", "dim": dim, "heads": heads, "steps": steps, "blocks": blocks, "expansion": expansion,
            "h_cycles": h_cycles, "l_cycles": l_cycles, "gradient_cycles": gradient_cycles, "supervise": supervise,
            "standalone": standalone, "halting": halting, "rotary": rotary, "keep": keep,
        }  # fmt: skip
        self.dim, self.h_cycles, self.l_cycles = dim, h_cycles, l_cycles
        self.keep = keep
        self.updates = supervise == "updates"
        self.n_steps = steps * h_cycles * (l_cycles + 1) if self.updates else steps
        self.gradient_cycles = h_cycles if gradient_cycles is None else gradient_cycles
        self.level = RecursiveNetwork(dim, heads, blocks, expansion, rotary)
        self.injection = None if standalone else Injection(dim)
        self.out = None if standalone else nn.Linear(dim, dim)
        self.halt = nn.Linear(dim, 1) if halting else None
        self.initial_H: Tensor
        self.initial_L: Tensor
        self.hidden_rms: Tensor
        self.register_buffer("initial_H", torch.zeros(dim))
        self.register_buffer("initial_L", torch.zeros(dim))
        self.register_buffer("hidden_rms", torch.ones(()))

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Fill f as ``RecursiveNetwork`` does; both initial states N(0, 1) cut at 2, fixed; the answer says nothing at first, and
        halting is never advised.
        """
        self.hidden_rms.fill_(hidden_rms)
        uniform_(self, generator)
        self.level.init_weights(generator)
        for initial in (self.initial_H, self.initial_L):
            nn.init.trunc_normal_(initial, generator=generator)
        if self.out is not None:
            zeros_(self.out)
        if self.halt is not None:
            nn.init.zeros_(self.halt.weight)
            nn.init.constant_(self.halt.bias, -5.0)

    def condition(self, inputs: Inputs, layout: Layout) -> dict[str, Tensor]:
        """The question: what every update of z_L sees."""
        if self.injection is None:
            return {"question": inputs.embedding}
        return {"question": self.injection(inputs.x, inputs.embedding), "x": inputs.x}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both states as they always start; and what the answer is a change of."""
        carry = {"z_H": self.initial_H.expand_as(hidden), "z_L": self.initial_L.expand_as(hidden)}
        return carry if self.out is None else {**carry, "base": hidden}

    def forward(
        self, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool = False
    ) -> State:
        """``h_cycles`` cycles, the last ``gradient_cycles`` of them with gradient."""
        z_H, z_L = carry["z_H"], carry["z_L"]
        for cycle in range(self.h_cycles):
            learns = cycle >= self.h_cycles - self.gradient_cycles
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                for _ in range(self.l_cycles):
                    z_L = self._updated(z_L, z_H, condition["question"], layout)
                z_H = self._updated(z_H, z_L, None, layout)
        return self._answer(z_H, {**carry, "z_H": z_H, "z_L": z_L}, condition, layout, statistics)

    def step(
        self, number: int, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool = False
    ) -> State:
        """A supervised step: ``h_cycles`` cycles, or one update."""
        if not self.updates:
            return super().step(number, carry, condition, layout, statistics)
        of_z_L = number % (self.l_cycles + 1) < self.l_cycles
        if of_z_L:
            updated = self._updated(carry["z_L"], carry["z_H"], condition["question"], layout)
        else:
            updated = self._updated(carry["z_H"], carry["z_L"], None, layout)
        return self._answer(updated, {**carry, "z_L" if of_z_L else "z_H": updated}, condition, layout, statistics)

    def _updated(self, state: Tensor, other: Tensor, question: Tensor | None, layout: Layout) -> Tensor:
        """f(state + other + question)."""
        if self.keep == "graph" or not torch.is_grad_enabled():
            return self.level(state, other, question, layout)
        batch = len(state)
        size = -(-batch // PARTS)
        parts = [[None] * batch if x is None else x.split(size) for x in (state, other, question)]
        again = partial(checkpoint, self.level, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
        return torch.cat([again(*part) for part in zip(*parts, layout.parts(size, batch), strict=False)])

    def compile_targets(self) -> list[nn.Module]:
        """List the blocks of the network that all updates share: few graphs serve a step of any number of updates."""
        return [*self.level.blocks]

    def _answer(
        self, z: Tensor, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool
    ) -> State:
        hidden = z
        if self.out is not None:
            hidden = layout.where(carry["base"] + self.hidden_rms * self.out(z), condition["x"])
        return State(
            hidden, carry, self._measure(carry, hidden, layout) if statistics else {}, halt=self._halting(z, layout.attention)
        )

    def _halting(self, z: Tensor, attention: Tensor | None) -> Tensor | None:
        if self.halt is None:
            return None
        if attention is None:
            return self.halt(z.mean(1))[:, 0]
        return self.halt((z * attention[..., None]).sum(1) / attention.sum(1, keepdim=True))[:, 0]

    @torch.no_grad()
    def _measure(self, carry: Mapping[str, Tensor], hidden: Tensor, layout: Layout) -> dict[str, Tensor]:
        sizes = {f"state/{name}": mean_square(carry[name], layout.attention).sqrt() for name in ("z_H", "z_L")}
        return sizes if self.out is None else {**sizes, "delta": mean_square(hidden - carry["base"], layout.attention).sqrt()}
