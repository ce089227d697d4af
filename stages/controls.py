"""controls: what the same compute buys without the refiner's phases. Two runs, matched in floating-point operations."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from components.ranges import PositiveInt, Seed
from pipeline.data.batches import Source
from pipeline.machine.runtime import Runtime
from pipeline.models import checkpoint
from pipeline.models.backbones import Backbone
from pipeline.training import phase
from pipeline.training.train_state import TrainState


def run(
    *,
    out: str,
    backbone: str,
    warmup: str,
    joint: str,
    states: Callable[..., Source],
    examples: Callable[..., Source],
    fit: Callable[..., TrainState],
    fit_backbone: Callable[..., TrainState],
    unfreeze: Sequence[str],
    unfreeze_backbone: Sequence[str],
    batch_size: PositiveInt,
    backbone_batch_size: PositiveInt,
    validation_batch_size: PositiveInt,
    seed: Seed,
    runtime: Runtime,
) -> None:
    """Write ``out/backbone`` (the backbone trained on for warmup's and joint's compute) and ``out/warmup`` (for joint's).

    Args:
        out: folder of both.
        backbone: folder of the backbone.
        warmup: folder of warmup's model, which is simply continued.
        joint: folder of joint, whose compute is matched.
        states: hidden states of a split, for the warmup control.
        examples: token ids of a split, for the backbone control.
        fit: joint's training loop.
        fit_backbone: the backbone's training loop.
        unfreeze: module paths that warmup trains.
        unfreeze_backbone: module paths that are trained of the backbone alone; "" is everything.
        batch_size: sequences of a microbatch of warmup.
        backbone_batch_size: of the backbone.
        validation_batch_size: sequences that are validated together; changes memory, and no weights.
        seed: of masks and order.
        runtime: where it computes.
    """
    runtime.enter_process()
    base = Backbone(backbone)
    phases = checkpoint.open_phases({"warmup": warmup, "joint": joint}, base)
    continued = base.model()
    folder = Path(out) / "backbone"
    phase.run_phase(
        "controls/backbone", continued, partial(examples, backbone=base), folder,
        partial(checkpoint.save_model, folder, continued, base), runtime,
        fit=fit_backbone, unfreeze=unfreeze_backbone, batch_size=backbone_batch_size,
        validation_batch_size=validation_batch_size, seed=seed + 1,
        matched=[phases["warmup"], phases["joint"]],
    )  # fmt: skip
    sources = partial(states, backbone=base)
    refined = checkpoint.load_refined(phases["warmup"], base, "warmup", sources("train").layer)
    folder = Path(out) / "warmup"
    phase.run_phase(
        "controls/warmup", refined, sources, folder,
        partial(checkpoint.save_model, folder, refined, base, phases["warmup"]), runtime,
        fit=fit, unfreeze=unfreeze, batch_size=batch_size,
        validation_batch_size=validation_batch_size, seed=seed + 1, matched=[phases["joint"]],
    )  # fmt: skip
