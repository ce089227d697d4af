"""joint, phase 2: also trains the last backbone layers, at a smaller learning rate, from the same shards."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from components.ranges import PositiveInt, Seed
from components.training.freezing import Table
from pipeline.data.batches import Sources
from pipeline.machine.runtime import Runtime
from pipeline.models import checkpoint
from pipeline.models.backbones import Backbone
from pipeline.models.model_folder import ModelFolder
from pipeline.training import phase
from pipeline.training.train_state import TrainState


def run(
    *,
    out: str,
    backbone: str,
    warmup: str,
    states: Sources,
    fit: Callable[..., TrainState],
    unfreeze: Sequence[str],
    layer_norms: bool,
    table: Table,
    batch_size: PositiveInt,
    validation_batch_size: PositiveInt,
    seed: Seed,
    runtime: Runtime,
) -> None:
    """Write ``out`` with refiner and tail, trained on from warmup's model.

    Args:
        out: folder of the phase.
        backbone: folder of the backbone.
        warmup: folder of the model to start from.
        states: hidden states of a split (``pipeline.data.sources``).
        fit: the training loop.
        unfreeze: module paths to train; ``backbone.blocks.*`` is the tail.
        layer_norms: train every norm too.
        table: how what is trained is written to the log (``components.training.freezing``).
        batch_size: sequences of a microbatch.
        validation_batch_size: sequences that are validated together; changes memory, and no weights.
        seed: of the order.
        runtime: where it computes.
    """
    runtime.enter_process()
    base = Backbone(backbone)
    sources = partial(states, backbone=base)
    start = ModelFolder(warmup, "warmup", "warmup")
    model = checkpoint.load_refined(start, base, "warmup", sources("train").layer)
    save = partial(checkpoint.save_model, Path(out), model, base, start)
    phase.run_phase(
        "joint", model, sources, out, save, runtime,
        fit=fit, unfreeze=unfreeze, layer_norms=layer_norms, table=table, batch_size=batch_size,
        validation_batch_size=validation_batch_size, seed=seed + 1,
    )  # fmt: skip
