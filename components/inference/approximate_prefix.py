"""Masked diffusion in blocks with keys and values of what surrounds a block kept while it is decoded: approximations.

Every token of a masked-diffusion model sees every other, so that a token that is committed changes the states of all, those before
its block too. Nothing of them can be kept exactly. This keeps keys and values of the prefix from a block's first pass, in which
everything is read, until the next block's; the further passes of the block read the block and what stands behind it. With as many
passes as blocks nothing is approximated. Source: Wu et al., Fast-dLLM (2025), section 3.1 (prefix cache).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.batch import Batch
from components.inference.canvases import read_at
from components.inference.sampling import Predict
from components.model import Model
from components.nn.key_value_cache import KeyValueCache

ReadAgain = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # places, first place of the block, the place behind it -> read in all passes
Prefix = Callable[[Model, Batch, int], Predict]  # model, batch, blocks -> what the sampler asks


def approximate_prefix(model: Model, batch: Batch, blocks: int) -> Predict:
    """Predict the queried positions, which are of each row's present block.

    Args:
        model: that can go on from a cache.
        batch: its answers all masked.
        blocks: as the sampler's.

    Raises:
        ValueError: the model cannot go on from a cache.
    """
    return _approximated(model, batch, blocks, lambda places, start, end: places >= start)


def approximate_surroundings(model: Model, batch: Batch, blocks: int) -> Predict:
    """Predict as ``approximate_prefix``, with what stands behind a block kept as well: its further passes read the block alone.

    Source: Wu et al., Fast-dLLM (2025), section 3.1 (dual cache).

    Args:
        model, batch, blocks: as there.

    Raises:
        ValueError: as there.
    """
    return _approximated(model, batch, blocks, lambda places, start, end: (places >= start) & (places < end))


def _approximated(model: Model, batch: Batch, blocks: int, read_again: ReadAgain) -> Predict:
    order, total = batch.masked.cumsum(1) - 1, batch.masked.sum(1, keepdim=True)
    ends = total * torch.arange(1, blocks + 1, device=total.device) // blocks  # how many tokens of each row's answer are before
    block_of = (order[:, None] >= ends[..., None]).sum(1)
    there = batch.present
    rows, seq = batch.masked.shape
    places = torch.arange(seq, device=total.device).expand(rows, -1)
    cache = model.key_value_cache()
    if cache is None:
        raise ValueError("it cannot go on from keys and values that are kept")
    block = start = end = torch.full_like(total, -1)

    def predict(tokens: Int[Tensor, "batch seq"], queried: Bool[Tensor, "batch seq"]) -> Float[Tensor, "places vocab"]:
        nonlocal cache, block, start, end
        assert cache is not None
        going, first = queried.any(1, keepdim=True), queried.int().argmax(1, keepdim=True)
        number = torch.where(going, block_of.gather(1, first), -1)
        anew = not cache.new or bool((going & (number != block)).any())
        if anew:
            cache, block = model.key_value_cache(), number
            assert cache is not None
            inside = batch.masked & (block_of == block)  # decided or not: that may be asked for again
            start, end = (inside.cumsum(1) == 0).sum(1, keepdim=True), (places * inside).amax(1, keepdim=True) + 1
        begin = torch.zeros_like(start) if anew else start.clamp(max=seq - 1)
        now = begin + torch.arange(seq - int(begin.min()), device=begin.device)
        fresh = (now < seq) & (read_again(now, start, end) | anew)
        most = max(1, int(fresh.sum(1).max()))
        now, fresh = now[:, :most].clamp(max=seq - 1), fresh[:, :most]
        read = fresh & there.gather(1, now)
        cache.admit(now, read)
        states = model.states(_batch(tokens.gather(1, now), read, cache))
        if anew:
            again = read_again(places, start, end)
            cache.hide(again)
            cache.crop(int(again.flip(1).cumprod(1).sum(1).min()))
        else:
            cache.crop(now.shape[1])
        row, column = queried.nonzero(as_tuple=True)
        return read_at(model, states, row * now.shape[1] + column - begin[row, 0])

    return predict


def _batch(tokens: Int[Tensor, "batch new"], read: Bool[Tensor, "batch new"], cache: KeyValueCache) -> Batch:
    nothing = torch.zeros_like(read)
    return Batch(tokens, tokens, nothing, nothing.float(), None if bool(read.all()) else read, cache=cache)
