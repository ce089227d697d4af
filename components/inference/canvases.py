"""Canvases: rows of a denoising pass as the model reads them. Equal ones are read once, and only what is asked for is read out.

The more of an answer is decided, the more rows of a batch have come to the same canvas: puzzles of one solution with other clues.
What a model says of one does not depend on the rows beside it; rows and positions come in whole blocks, since kernels treat what
is left over in another way, whose last digit may differ.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.batch import Batch
from components.model import Model

BLOCK = 32


def read_out(model: Model, batch: Batch, queried: Bool[Tensor, "batch seq"]) -> Float[Tensor, "places vocab"]:
    """Compute the logits of a batch after the last step at the queried positions, row after row.

    Args:
        model: any that remembers no passes.
        batch: on its device.
        queried: the positions.
    """
    rows, canvas = distinct(batch, queried)
    if len(rows) == len(batch):
        return _read_out(model, batch, queried)
    number = queried[rows].sum(1)
    row, column = queried.nonzero(as_tuple=True)
    place = (number.cumsum(0) - number)[canvas[row]] + (queried.cumsum(1) - 1)[row, column]
    return _read_out(model, batch.take(rows), queried[rows])[place]


def distinct(batch: Batch, queried: Bool[Tensor, "batch seq"]) -> tuple[Int[Tensor, "some"], Int[Tensor, "batch"]]:
    """Choose rows among which is every canvas of a batch, in whole blocks, and the place of each row's canvas among them.

    Args:
        batch: the rows.
        queried: positions; rows of which others are queried, or masked, do not count as equal.
    """
    seen = torch.cat(
        [batch.tokens, *(x.to(batch.tokens.dtype) for x in (batch.masked, queried, batch.attention) if x is not None)], 1
    )
    _, canvas, times = seen.unique(dim=0, return_inverse=True, return_counts=True)
    order = canvas.argsort(stable=True)
    first = times.cumsum(0) - times
    again = torch.ones_like(order, dtype=torch.bool).index_fill(0, first, False)
    rows = torch.cat([order[first], order[again][: -len(times) % BLOCK]])
    return rows, canvas


def _read_out(model: Model, batch: Batch, queried: Bool[Tensor, "batch seq"]) -> Float[Tensor, "places vocab"]:
    places = queried.flatten().nonzero()[:, 0]
    return read_at(model, model.states(batch, in_blocks(places)), places)


def read_at(model: Model, states: Float[Tensor, "batch seq dim"], places: Int[Tensor, "places"]) -> Float[Tensor, "places vocab"]:
    """Compute the logits of states at places, which are indices into all positions, row after row."""
    return model.readout(rearrange(states, "batch seq dim -> (batch seq) dim")[in_blocks(places)])[: len(places)]


def in_blocks(places: Int[Tensor, "places"]) -> Int[Tensor, "whole"]:
    """Repeat the last place until blocks are whole."""
    return torch.cat([places, places[-1:].expand(-len(places) % BLOCK)])
