"""What is asked of causal models: generation as it is without any cache, every pass reading the whole text and all of its positions
out; and what a token changes.
"""

from collections import deque
from dataclasses import replace

import torch

from bench.causal_generation import plain
from components.batch import Batch
from components.inference.sampling import Sampler


def plainly(model, canvas, mask_id, sampler=None, *, pad_id=0, end_id=None, uid=None, known=None, attention=None):
    """The last pass of the sampler that fills masks, a block for each token."""
    n = int((canvas == mask_id).sum(1).max())
    sampler = replace(sampler or Sampler(), steps=n, blocks=n)
    predict = plain(model, mask_id, attention, pad_id)
    return deque(sampler.passes(predict, canvas, mask_id, end_id=end_id, uid=uid, known=known), maxlen=1).pop()


def changed_by_a_token(model, prepared, place):
    """How much each position of two test texts changes, at most over steps and channels, when the token at ``place`` is another."""
    tokens = prepared.split("test").tokens[:2].long()
    other = tokens.clone()
    other[:, place] = (other[:, place] + 1) % 200
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        a, b = (torch.stack([s.hidden for s in model.steps(Batch(t, t, nothing, nothing.float()))]) for t in (tokens, other))
    return (a - b).abs().amax((0, 1, 3))
