"""MLPRefiner: the founding baseline. A small MLP changes each token by what it and its chunk hold; no attention, no slots."""

from collections.abc import Mapping

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.core import Core, Injection, Inputs, Layout, uniform_, zeros_
from components.orthogonality import mean_square
from components.recursion import State


class MLPRefiner(Core):
    """Recursive refinement head: hidden += rms * MLP(token, mean of its chunk), x and embeddings injected at every step.

    Args:
        dim: width of the states.
        steps: supervised steps.
        chunk: tokens that share a mean; a last shorter chunk is one too.
        ratio: width of the MLP over ``dim``.

    Raises:
        ValueError: no step, or chunks of no token.
    """

    def __init__(self, dim: int, steps: int = 4, chunk: int = 16, ratio: int = 4) -> None:
        super().__init__()
        if steps < 1 or chunk < 1:
            raise ValueError(f"the MLP refiner needs at least 1 step and chunks of 1 token, got steps {steps}, chunk {chunk}")
        self.architecture = {"core": "MLPRefiner", "dim": dim, "steps": steps, "chunk": chunk, "ratio": ratio}
        self.dim, self.n_steps, self.chunk = dim, steps, chunk
        self.state_norm, self.injection = nn.LayerNorm(dim, bias=False), Injection(dim)
        self.up, self.down = nn.Linear(2 * dim, ratio * dim), nn.Linear(ratio * dim, dim)
        self.hidden_rms: Tensor
        self.register_buffer("hidden_rms", torch.ones(()))

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """U(+-1/sqrt(fan-in)); the output layer 0: no change at first."""
        self.hidden_rms.fill_(hidden_rms)
        uniform_(self, generator)
        zeros_(self.down)

    def condition(self, inputs: Inputs, layout: Layout) -> dict[str, Tensor]:
        """x, and what every step sees of it."""
        return {"x": inputs.x, "injected": self.injection(inputs.x, inputs.embedding)}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states."""
        return {"hidden": hidden}

    def forward(
        self, carry: Mapping[str, Tensor], condition: Mapping[str, Tensor], layout: Layout, statistics: bool = False
    ) -> State:
        """One step."""
        hidden = carry["hidden"]
        u = self.state_norm(hidden) + condition["injected"]
        around = chunk_means(u, self.chunk, layout.attention)
        update = self.hidden_rms * self.down(F.gelu(self.up(torch.cat([u, around], -1))))
        refined = layout.kept(hidden + update, condition["x"])
        measured = {"delta": mean_square(update, layout.attention).sqrt()} if statistics else {}
        return State(refined, {"hidden": refined}, measured)


def chunk_means(
    x: Float[Tensor, "batch seq dim"], chunk: int, attention: Bool[Tensor, "batch seq"] | None = None
) -> Float[Tensor, "batch seq dim"]:
    """Each token's chunk's mean over the tokens that are not padding; 0 where there is none.

    >>> chunk_means(torch.tensor([1.0, 3.0, 5.0]).reshape(1, 3, 1), 2).flatten().tolist()
    [2.0, 2.0, 5.0]
    """
    seq = x.shape[1]
    kept = x.new_ones(x.shape[:2]) if attention is None else attention.to(x.dtype)
    more = -seq % chunk
    sums = reduce(F.pad(x * kept[..., None], (0, 0, 0, more)), "b (c n) d -> b c d", "sum", n=chunk)
    counts = reduce(F.pad(kept, (0, more)), "b (c n) -> b c", "sum", n=chunk)
    means = sums / rearrange(counts.clamp(min=1), "b c -> b c 1")
    return repeat(means, "b c d -> b (c n) d", n=chunk)[:, :seq]
