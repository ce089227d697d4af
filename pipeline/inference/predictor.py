"""What a sampler asks a model: token ids of a batch -> logits of every position, through the last recursion step."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from components.batch import Batch
from components.inference import halting
from components.inference.halting import Rule
from components.inference.sampling import Predict
from components.model import Model
from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime


def predictor(model: Model, batch: Batch, vocabulary: Vocabulary, runtime: Runtime, halt: Rule | None = None) -> Predict:
    """Predicts what is still masked of ``batch``; if causal, what follows the tokens before the first mask.

    Args:
        model: any.
        batch: on the runtime's device; its answers all masked.
        vocabulary: its token ids.
        runtime: where it computes.
        halt: rule by which sequences leave the recursion; None = after all steps.
    """

    @torch.no_grad()
    def predict(tokens: Tensor) -> Tensor:
        now = replace(batch, tokens=tokens, masked=batch.masked & (tokens == vocabulary.mask_id), rows=None)
        with runtime.autocast():
            if vocabulary.causal:
                return _following(model, now, vocabulary.pad_id)
            return model.readout(model.states(now) if halt is None else _halted(model, now, halt))

    return predict


def _following(model: Model, batch: Batch, pad_id: int) -> Tensor:
    """Logits at the place of the token that they are of. What stands behind every row's first mask decides nothing, and is cut."""
    written = int((~batch.masked).cumprod(1).sum(1).max())
    length = min(written, batch.tokens.shape[1] - 1)
    seen = replace(batch, tokens=batch.tokens.masked_fill(batch.masked, pad_id)).cut(length)
    return F.pad(model.readout(model.states(seen)), (0, 0, 1, batch.tokens.shape[1] - length - 1))


def _halted(model: Model, batch: Batch, rule: Rule) -> Tensor:
    try:
        return halting.halted(model, batch, rule)[0]
    except ValueError as error:
        raise ConfigError(f"generation.Generator.halt: {error}") from None
