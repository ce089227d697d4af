"""What a model that remembers says in a second denoising pass: all of an answer masked first, then the share that is measured.

Beside it stands what it says of the very same masks without memory, in one pass: what the memory is worth where tokens are right.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.inference.metrics import Counts
from components.inference.pass_memory import PassMemory
from components.model import Model
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import answer_counts
from pipeline.machine.runtime import Runtime
from pipeline.text.rendering import Right, is_reference


def second_passes(
    models: Compared,
    split: Split,
    vocabulary: Vocabulary,
    single: Mapping[str, Counts],
    piece: str,
    *,
    ratio: float,
    seed: int,
    size: int,
    right: Right = is_reference,
) -> dict[str, dict[str, Any]]:
    """Measure the second pass of every model that remembers; nothing of others.

    Args:
        models: any.
        split: the examples, in the order of ``single``.
        vocabulary: their token ids.
        single: what each model says of the same masks in one pass.
        piece: under which finished batches are kept.
        ratio: share of every answer that is masked in the second pass.
        seed: of the masks.
        size: examples that are measured together.
        right: tells which answers are solved.

    Returns:
        By model nll, token_accuracy and exact with intervals, and ``minus_single``, their paired differences from the single pass.
    """
    remembering = Compared({name: model for name, model in models.models.items() if model.remembers}, models.runtime)
    passes, measured = _passes(split, vocabulary, ratio, seed, size), dict[str, dict[str, Any]]()
    if not remembering.models:
        return measured
    for name, by_batch in remembering.on(passes, piece, partial(_second, runtime=models.runtime, right=right)).items():
        counts = Counts(**{f.name: torch.cat([values[f.name] for values in by_batch]) for f in fields(Counts)})
        last = {
            key: value for key, value in evaluator.summary([counts], split.group, right).items() if not key.endswith("_by_step")
        }
        measured[name] = {**last, "minus_single": evaluator.compare(counts, single[name], split.group, right)}
    return measured


def _passes(split: Split, vocabulary: Vocabulary, ratio: float, seed: int, size: int) -> Iterator[Batch]:
    """Each batch all masked, with the pass after it."""
    masks = (evaluator.batches(split, vocabulary, share, seed, size) for share in (1.0, ratio))
    for first, second in zip(*masks, strict=True):
        yield evaluator.trimmed(replace(first, later=(second,)))


def _second(model: Model, batch: Batch, *, runtime: Runtime, right: Right) -> dict[str, Tensor]:
    """Fields of ``Counts`` of the last pass."""
    memory = PassMemory()
    with runtime.autocast():
        *_, state = (memory.run(model, each) for each in batch.passes)
        last = batch.passes[-1]
        counts = answer_counts(model.readout(state.hidden[last.masked]), last, right)
    return {f.name: getattr(counts, f.name) for f in fields(Counts)}
