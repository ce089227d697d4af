"""Causal generation as it is without any cache: every pass reads the whole text and all of its positions out."""

from collections import deque
from dataclasses import replace

import torch
from torch.nn import functional as F

from components.batch import Batch
from components.inference.sampling import Sampler


def plainly(model, canvas, mask_id, sampler=None, *, pad_id=0, end_id=None, uid=None, known=None, attention=None):
    """The last pass of the sampler that fills masks, a block for each token."""

    @torch.no_grad()
    def predict(tokens):
        masked = tokens == mask_id
        length = min(int((~masked).cumprod(1).sum(1).max()), tokens.shape[1] - 1)
        seen, nothing = tokens.masked_fill(masked, pad_id)[:, :length], torch.zeros_like(masked[:, :length])
        batch = Batch(seen, seen, nothing, nothing.float(), None if attention is None else attention[:, :length])
        return F.pad(model.readout(model.states(batch)), (0, 0, 1, tokens.shape[1] - length - 1))

    n = int((canvas == mask_id).sum(1).max())
    sampler = replace(sampler or Sampler(), steps=n, blocks=n)
    return deque(sampler.passes(predict, canvas, mask_id, end_id=end_id, uid=uid, known=known), maxlen=1).pop()
