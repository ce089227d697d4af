"""finetune, phase 3: the whole model, tiny learning rate, short. Off by default: ``steps = 0`` hands joint's model on."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from components.ranges import NonNegativeInt, PositiveInt, Seed
from components.training.freezing import Table
from pipeline.data.batches import Sources
from pipeline.machine.runtime import Runtime
from pipeline.models import checkpoint
from pipeline.models.backbones import Backbone
from pipeline.models.model_folder import ModelFolder
from pipeline.training import phase
from pipeline.training.train_state import FitOfSteps


def run(
    *,
    out: str,
    backbone: str,
    joint: str,
    examples: Sources,
    fit: FitOfSteps,
    unfreeze: Sequence[str],
    table: Table,
    batch_size: PositiveInt,
    validation_batch_size: PositiveInt,
    steps: NonNegativeInt,
    seed: Seed,
    runtime: Runtime,
) -> None:
    """Write ``out`` with every layer trained on from joint's model, or joint's model itself.

    Args:
        out: folder of the phase.
        backbone: folder of the backbone.
        joint: folder of the model to start from.
        examples: token ids of a split (``pipeline.data.sources.tokens``).
        fit: the training loop.
        unfreeze: module paths to train; "" is everything.
        table: how what is trained is written to the log (``components.training.freezing``).
        batch_size: sequences of a microbatch.
        validation_batch_size: sequences that are validated together; changes memory, and no weights.
        steps: optimizer steps; 0 = phase off.
        seed: of masks and order.
        runtime: where it computes.
    """
    runtime.enter_process()
    base = Backbone(backbone)
    start = ModelFolder(joint, "joint", "joint")
    model = checkpoint.load_refined(start, base, "joint", 0)
    save = partial(checkpoint.save_model, Path(out), model, base, start)
    if steps == 0:
        phase.skipped("finetune", out, save)
        return
    phase.run_phase(
        "finetune", model, partial(examples, backbone=base), out, save, runtime,
        fit=partial(fit, steps=steps), unfreeze=unfreeze, table=table, batch_size=batch_size,
        validation_batch_size=validation_batch_size, seed=seed + 2,
    )  # fmt: skip
