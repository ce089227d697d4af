"""A model that looks its logits up, exact and the same in every batch, and rows for it to fill."""

import torch
from hypothesis import strategies as st

VOCAB, MASK = 7, 6


@st.composite
def puzzles(draw, rows=4):
    """Token ids of which some are the mask."""
    seq, batch = draw(st.integers(1, 10)), draw(st.integers(1, rows))
    row = st.lists(st.integers(0, MASK) | st.just(MASK), min_size=seq, max_size=seq)
    return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))


class Model:
    """Logits of a place depend on the place and on the whole row, by table look-up alone; the mask id is always most likely."""

    def __init__(self, seed=0):
        self.table = torch.randn(64, 10, VOCAB, generator=torch.Generator().manual_seed(seed))
        self.table[..., MASK] = 9.0
        self.seen = []

    def __call__(self, tokens):
        self.seen.append(tokens.clone())
        key = (tokens * (1 + torch.arange(tokens.shape[1]))).sum(1) % 64
        return self.table[key, : tokens.shape[1]]


def at(predict):
    """What a sampler asks: the logits of the queried places, of what gives those of all."""
    return lambda tokens, queried: predict(tokens)[queried]


def every(sampler, predict, tokens, **given):
    """All passes of a sampler over what gives the logits of all positions."""
    asked = {name: at(value) if name == "finish" else value for name, value in given.items()}
    return list(sampler.passes(at(predict), tokens, MASK, **asked))
