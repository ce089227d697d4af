"""What a sampler asks a model, through the last recursion step: token ids of a batch -> logits of the places that are queried; of a
causal model, of each row's next token."""

from dataclasses import replace

import torch
from torch import Tensor

from components.batch import Batch
from components.inference import canvases, halting
from components.inference.approximate_prefix import Prefix
from components.inference.halting import Rule
from components.inference.left_to_right import Read, continued, reread
from components.inference.pass_memory import PassMemory
from components.inference.sampling import Predict
from components.model import Model
from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime


def predictor(
    model: Model,
    batch: Batch,
    vocabulary: Vocabulary,
    runtime: Runtime,
    halt: Rule | None = None,
    prefix: Prefix | None = None,
    blocks: int = 1,
    memory: PassMemory | None = None,
) -> Predict:
    """Predicts what is queried of ``batch``, one pass of a decode after the other.

    Args:
        model: any.
        batch: on the runtime's device; its answers all masked.
        vocabulary: its token ids.
        runtime: where it computes.
        halt: rule by which sequences leave the recursion; None = after all steps.
        prefix: what is kept of the tokens before a block while it is decoded; None = nothing, everything is read in every pass.
        blocks: as the sampler's; of concern to ``prefix`` alone.
        memory: what the passes of the decode so far have left, for a model that remembers; None = this predicts the first.
    """
    memory = PassMemory() if memory is None else memory
    from_prefix = None if prefix is None else _from_prefix(prefix, model, batch, blocks)

    @torch.no_grad()
    def predict(tokens: Tensor, queried: Tensor) -> Tensor:
        now = replace(batch, tokens=tokens, masked=batch.masked & (tokens == vocabulary.mask_id), rows=None)
        with runtime.autocast():
            if from_prefix is not None:
                return from_prefix(tokens, queried)
            if model.remembers:
                return _read_at(model, memory.run(model, now).hidden, queried)
            if halt is not None:
                return _read_at(model, _halted(model, now, halt), queried)
            return canvases.read_out(model, now, queried)

    return predict


def reader(model: Model, batch: Batch, vocabulary: Vocabulary, runtime: Runtime) -> Read:
    """Reads what is written of ``batch`` with a causal model: on from where it stopped, or anew each time if the model cannot.

    Args:
        model: causal.
        batch: on the runtime's device.
        vocabulary: its token ids.
        runtime: where it computes.
    """
    cache = model.key_value_cache()
    if cache is None or not cache.causal:
        plain = reread(model, batch.attention, vocabulary.pad_id)
    else:
        plain = continued(model, cache, batch.attention, vocabulary.pad_id)

    @torch.no_grad()
    def read(tokens: Tensor, written: Tensor, rows: Tensor) -> Tensor:
        with runtime.autocast():
            return plain(tokens, written, rows)

    return read


def _from_prefix(prefix: Prefix, model: Model, batch: Batch, blocks: int) -> Predict:
    try:
        return prefix(model, batch, blocks)
    except ValueError as error:
        raise ConfigError(f"this model takes no approximate prefix: {error}; set it to None") from None


def _read_at(model: Model, states: Tensor, queried: Tensor) -> Tensor:
    return canvases.read_at(model, states, queried.flatten().nonzero()[:, 0])


def _halted(model: Model, batch: Batch, rule: Rule) -> Tensor:
    try:
        return halting.halted(model, batch, rule)[0]
    except ValueError as error:
        raise ConfigError(f"generation.Generator.halt: {error}") from None
