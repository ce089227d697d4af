"""MLPRefiner: the baseline of the founding documents."""

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.nn.key_value_cache import KeyValueCache
from components.ranges import Depth, PositiveInt
from components.refiners.core import Layout
from components.refiners.residual import Residual


class MLPRefiner(Residual):
    """Recursive refinement head: hidden += rms * MLP(token, mean of its chunk), x and embeddings injected at every step.

    Args:
        dim: width of the states.
        steps: supervised steps.
        chunk: tokens that share a mean; a last shorter chunk is one too.
        ratio: width of the MLP over ``dim``.

    Raises:
        ValueError: no step, or chunks of no token.
    """

    incremental = True

    def __init__(self, dim: int, steps: Depth = 4, chunk: PositiveInt = 16, ratio: PositiveInt = 4) -> None:
        super().__init__(dim, steps)
        if steps < 1 or chunk < 1:
            raise ValueError(f"the MLP refiner needs at least 1 step and chunks of 1 token, got steps {steps}, chunk {chunk}")
        self.architecture = {"core": "MLPRefiner", "dim": dim, "steps": steps, "chunk": chunk, "ratio": ratio}
        self.chunk = chunk
        self.up, self.down = nn.Linear(2 * dim, ratio * dim), nn.Linear(ratio * dim, dim)

    def features(self, u: Float[Tensor, "batch seq dim"], layout: Layout) -> Float[Tensor, "batch seq width"]:
        """Compute features of a token and the mean of its chunk."""
        if layout.cache is not None:
            means = chunk_means_so_far(u, self.chunk, layout.cache)
        else:
            means = chunk_means(u, self.chunk, layout.attention, layout.causal)
        return F.gelu(self.up(torch.cat([u, means], -1)))


def chunk_means(
    x: Float[Tensor, "batch seq dim"], chunk: int, attention: Bool[Tensor, "batch seq"] | None = None, causal: bool = False
) -> Float[Tensor, "batch seq dim"]:
    """Each token's chunk's mean over the tokens that are not padding; 0 where there is none. Causal: over those up to itself.

    >>> chunk_means(torch.tensor([1.0, 3.0, 5.0]).reshape(1, 3, 1), 2).flatten().tolist()
    [2.0, 2.0, 5.0]
    """
    seq = x.shape[1]
    weight = x.new_ones(x.shape[:2]) if attention is None else attention.to(x.dtype)
    more = -seq % chunk
    weighted, counted = F.pad(x * weight[..., None], (0, 0, 0, more)), F.pad(weight, (0, more))
    if causal:
        sums = rearrange(weighted, "b (c n) d -> b c n d", n=chunk).cumsum(2)
        counts = rearrange(counted, "b (c n) -> b c n 1", n=chunk).cumsum(2)
        return rearrange(sums / counts.clamp(min=1), "b c n d -> b (c n) d")[:, :seq]
    sums = reduce(weighted, "b (c n) d -> b c d", "sum", n=chunk)
    counts = reduce(counted, "b (c n) -> b c", "sum", n=chunk)
    means = sums / rearrange(counts.clamp(min=1), "b c -> b c 1")
    return repeat(means, "b c d -> b (c n) d", n=chunk)[:, :seq]


def chunk_means_so_far(x: Float[Tensor, "batch new dim"], chunk: int, cache: KeyValueCache) -> Float[Tensor, "batch new dim"]:
    """Each new token's chunk's mean over the tokens up to itself, most of which a cache holds."""
    so_far = cache.extended(x)
    numbers = cache.places // chunk
    same = numbers[:, -cache.new :, None] == numbers[:, None]
    weight = (same & cache.visible()[:, 0]).to(x.dtype)
    return weight @ so_far / weight.sum(-1, keepdim=True).clamp(min=1)
