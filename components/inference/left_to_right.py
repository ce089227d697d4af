"""Writing with a causal model: token after token, each row from its own first mask on, until its end.

What is asked of the model is one row of logits for each text that still goes on, through a reader: ``continued`` reads every token
once, ``reread`` the whole text for every token; both lead to the same tokens, up to the rounding of sums.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.batch import Batch
from components.inference.sampling import LONGEST, Pass, Sampler, most_likely, without
from components.model import Model
from components.nn.key_value_cache import KeyValueCache

# token ids, how many of each row are written, which rows of the first call these are -> logits of each row's next token
Read = Callable[[Int[Tensor, "rows seq"], Int[Tensor, "rows"], Int[Tensor, "rows"]], Float[Tensor, "rows vocab"]]


def left_to_right(
    read: Read,
    tokens: Int[Tensor, "batch seq"],
    mask_id: int,
    sampler: Sampler,
    *,
    end_id: int | None = None,
    uid: Int[Tensor, "batch"] | None = None,
    known: Bool[Tensor, "ids"] | None = None,
) -> Iterator[Pass]:
    """Write what is masked, one token a row and pass, and yield after every pass; a row that has ended takes no more of them.

    Args:
        read: what predicts.
        tokens: prompt and ``mask_id`` wherever a token is wanted; a row's first token is none that is wanted.
        mask_id: never predicted.
        sampler: its temperature and seed.
        end_id: with it a row has ended; what is masked behind it becomes ends.
        uid: key of each row's noise; needed to draw.
        known: whether an id has a token; without one it is never predicted, nor are ids beyond these. None = all have.

    Raises:
        ValueError: tokens are to be drawn without ``uid``.
    """
    masked = tokens == mask_id
    probability, evaluations = (~masked).float(), torch.zeros_like(tokens[:, 0])
    going = masked.any(1).nonzero()[:, 0]
    while len(going):
        place = (~masked[going]).cumprod(1).sum(1)
        logits = without(read(tokens[going], place, going), mask_id, known)
        if sampler.temperature:  # numbered as the last undecided token of a block
            token = sampler.drawn(logits, LONGEST + place, None if uid is None else uid[going])
            certain = logits.softmax(-1).gather(-1, token[:, None])[:, 0]
        else:
            certain, token = most_likely(logits)
        tokens, probability = tokens.index_put((going, place), token), probability.index_put((going, place), certain)
        committed = torch.zeros_like(masked).index_put((going, place), torch.ones_like(place, dtype=torch.bool))
        evaluations = evaluations.index_add(0, going, torch.ones_like(going))
        masked = masked & ~committed
        if end_id is not None:
            ended = torch.zeros_like(masked[:, :1]).index_put((going[token == end_id],), torch.ones_like(masked[0, :1]))
            tokens, masked = torch.where(masked & ended, end_id, tokens), masked & ~ended
        yield Pass(tokens, probability, committed, evaluations)
        going = masked.any(1).nonzero()[:, 0]


def reread(model: Model, attention: Bool[Tensor, "batch seq"] | None, pad_id: int) -> Read:
    """Read all that is written for every token, and of each row what stands before its next token out."""

    def read(tokens: Tensor, written: Tensor, rows: Tensor) -> Tensor:
        seen = tokens[:, : int(written.max())]
        there = torch.arange(seen.shape[1], device=seen.device) < written[:, None]
        padded = None if attention is None else attention[rows, : seen.shape[1]]
        nothing = torch.zeros_like(there)
        batch = Batch(seen.masked_fill(~there, pad_id), seen, nothing, nothing.float(), padded)
        return model.readout(_last(model.states(batch), written))

    return read


def continued(model: Model, cache: KeyValueCache, attention: Bool[Tensor, "batch seq"] | None, pad_id: int) -> Read:
    """Read what is new since the last call, with a cache of what was read before; of the first call that is the whole prompt."""
    present, done = torch.empty(0), torch.empty(0)

    def read(tokens: Tensor, written: Tensor, rows: Tensor) -> Tensor:
        nonlocal present, done
        if not cache.new:
            present, done = rows, torch.zeros_like(written)
        elif len(rows) < len(present):
            going = torch.searchsorted(present, rows)
            cache.take(going)
            present, done = rows, done[going]
        count = written - done
        steps = torch.arange(int(count.max()), device=tokens.device)
        places = (done[:, None] + steps).clamp(max=tokens.shape[1] - 1)
        there = steps < count[:, None]
        if attention is not None:
            there = there & attention[rows].gather(1, places)
        new = tokens.gather(1, places).masked_fill(~there, pad_id)
        cache.admit(places, there)
        nothing = torch.zeros_like(there)
        batch = Batch(new, new, nothing, nothing.float(), None if bool(there.all()) else there, cache=cache)
        done = written
        return model.readout(_last(model.states(batch), count))

    return read


def _last(states: Float[Tensor, "rows seq dim"], lengths: Int[Tensor, "rows"]) -> Float[Tensor, "rows dim"]:
    return states[torch.arange(len(states), device=states.device), lengths - 1]
