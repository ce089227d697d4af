"""What a sampler asks a model: token ids of a batch -> logits of every position, through the last recursion step."""

from dataclasses import replace

import torch
from torch import Tensor

from components import halting
from components.batch import Batch
from components.halting import Rule
from components.model import Model
from components.sampling import Predict
from pipeline.errors import ConfigError
from pipeline.runtime import Runtime


def predictor(model: Model, batch: Batch, mask_id: int, runtime: Runtime, halt: Rule | None = None) -> Predict:
    """Predicts what is still masked of ``batch``.

    Args:
        model: any.
        batch: on the runtime's device; its answers all masked.
        mask_id: of its vocabulary.
        runtime: where it computes.
        halt: rule by which sequences leave the recursion; None = after all steps.
    """

    @torch.no_grad()
    def predict(tokens: Tensor) -> Tensor:
        now = replace(batch, tokens=tokens, masked=batch.masked & (tokens == mask_id), rows=None)
        with runtime.autocast():
            return model.readout(model.states(now) if halt is None else _halted(model, now, halt))

    return predict


def _halted(model: Model, batch: Batch, rule: Rule) -> Tensor:
    try:
        return halting.halted(model, batch, rule)[0]
    except ValueError as error:
        raise ConfigError(f"generation.Generator.halt: {error}") from None
