"""backbone: trains the model that the later phases keep frozen, from scratch or from a pretrained one, or takes that as it is."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from components.backbones.backbone import BackboneModel
from components.objective.nested import Masking
from components.ranges import PositiveInt, Seed
from components.training.grid_symmetries import Augmentation
from pipeline.corpora.prepared import Prepared
from pipeline.data.batches import VALIDATION, LiveSource
from pipeline.machine.runtime import Runtime
from pipeline.models import backbones
from pipeline.training import phase
from pipeline.training.train_state import TrainState


def run(
    *,
    out: str,
    prepared: str,
    model: Callable[..., BackboneModel],
    masking: Masking,
    fit: Callable[..., TrainState],
    unfreeze: Sequence[str],
    batch_size: PositiveInt,
    validation_batch_size: PositiveInt,
    buckets: Sequence[PositiveInt],
    seed: Seed,
    runtime: Runtime,
    augment: Augmentation | None,
) -> None:
    """Train ``model`` on the prepared examples, from scratch unless it is pretrained; with no step to take it stays as it came.

    Args:
        out: folder of the backbone.
        prepared: folder that prepare wrote.
        model: takes vocab and seq; its other sizes are bound.
        masking: the forward process.
        fit: the training loop.
        unfreeze: module paths to train; "" is everything.
        batch_size: sequences of a microbatch.
        validation_batch_size: sequences that are validated together; changes memory, and no weights.
        buckets: lengths that batches are padded to, ascending; the whole sequence is always one.
        seed: of weights, masks and order.
        runtime: where it computes.
        augment: makes other training examples of them in every epoch (``components.training.grid_symmetries``); None = none.
    """
    runtime.enter_process()
    data = Prepared(prepared)
    backbone = model(vocab=data.vocabulary.size, seq=data.vocabulary.sequence)
    backbones.check_causal(backbone, data.vocabulary.causal)
    backbone.init_weights(torch.Generator().manual_seed(seed))
    if unfreeze:
        backbones.check_sound(backbone)

    def source(split: str) -> LiveSource:
        stream = VALIDATION if split == "validation" else None
        rows = data.split(split)
        return LiveSource(
            rows, data.vocabulary, masking, seed, stream=stream, buckets=buckets, augment=augment, fingerprint=data.digest
        )

    save = partial(backbones.save_backbone, Path(out), backbone, data.vocabulary)
    phase.run_phase(
        "backbone", backbone, source, out, save, runtime,
        fit=fit, unfreeze=unfreeze, batch_size=batch_size, validation_batch_size=validation_batch_size, seed=seed,
    )  # fmt: skip
