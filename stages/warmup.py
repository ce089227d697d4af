"""warmup, phase 1: trains the refiner alone on cached states; the layers below the split are never loaded."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from components.ranges import PositiveInt, Seed
from components.refiners.core import Core
from components.training.freezing import Table
from pipeline.data.batches import Sources
from pipeline.machine.runtime import Runtime
from pipeline.models import checkpoint
from pipeline.models.backbones import Backbone
from pipeline.training import phase
from pipeline.training.train_state import TrainState


def run(
    *,
    out: str,
    backbone: str,
    states: Sources,
    refiner: Callable[..., Core],
    fit: Callable[..., TrainState],
    unfreeze: Sequence[str],
    layer_norms: bool,
    table: Table,
    batch_size: PositiveInt,
    validation_batch_size: PositiveInt,
    seed: Seed,
    runtime: Runtime,
) -> None:
    """Write ``out`` with the refiner over the frozen backbone.

    Args:
        out: folder of the phase.
        backbone: folder of the frozen backbone.
        states: hidden states of a split (``pipeline.data.sources``).
        refiner: takes dim; its other sizes are bound.
        fit: the training loop.
        unfreeze: module paths to train.
        layer_norms: train every norm too.
        table: how what is trained is written to the log (``components.training.freezing``).
        batch_size: sequences of a microbatch.
        validation_batch_size: sequences that are validated together; changes memory, and no weights.
        seed: of weights and order.
        runtime: where it computes.
    """
    runtime.enter_process()
    frozen = Backbone(backbone)
    sources = partial(states, backbone=frozen)
    examples = sources("train")
    model = phase.with_new_refiner("warmup", frozen.model(examples.layer), refiner, examples, batch_size, seed, runtime)
    save = partial(checkpoint.save_model, Path(out), model, frozen)
    phase.run_phase(
        "warmup", model, sources, out, save, runtime,
        fit=fit, unfreeze=unfreeze, layer_norms=layer_norms, table=table, batch_size=batch_size,
        validation_batch_size=validation_batch_size, seed=seed,
    )  # fmt: skip
