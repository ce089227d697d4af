"""Causal generation as it is without any cache: every pass reads the whole text and all of its positions out."""

from collections import deque
from dataclasses import replace

from bench.causal_generation import plain
from components.inference.sampling import Sampler


def plainly(model, canvas, mask_id, sampler=None, *, pad_id=0, end_id=None, uid=None, known=None, attention=None):
    """The last pass of the sampler that fills masks, a block for each token."""
    n = int((canvas == mask_id).sum(1).max())
    sampler = replace(sampler or Sampler(), steps=n, blocks=n)
    predict = plain(model, mask_id, attention, pad_id)
    return deque(sampler.passes(predict, canvas, mask_id, end_id=end_id, uid=uid, known=known), maxlen=1).pop()
