"""controls: what the same compute buys without the refiner's phases. Runs that are matched in floating-point operations."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from components.ranges import PositiveInt, Seed
from pipeline.data.batches import Sources
from pipeline.machine.runtime import Runtime
from pipeline.models import checkpoint
from pipeline.models.backbones import Backbone
from pipeline.models.lora import Lora
from pipeline.training import lora_phase, phase
from pipeline.training.train_state import TrainState


def run(
    *,
    out: str,
    backbone: str,
    warmup: str,
    joint: str,
    states: Sources,
    examples: Sources,
    fit: Callable[..., TrainState],
    fit_backbone: Callable[..., TrainState],
    lora: Lora,
    fit_lora: Callable[..., TrainState] | None,
    unfreeze: Sequence[str],
    unfreeze_backbone: Sequence[str],
    batch_size: PositiveInt,
    backbone_batch_size: PositiveInt,
    validation_batch_size: PositiveInt,
    seed: Seed,
    runtime: Runtime,
) -> None:
    """Write ``out/backbone`` and ``out/lora`` (backbone and adapters, for warmup's and joint's compute), ``out/warmup`` (joint's).

    Args:
        out: folder of all.
        backbone: folder of the backbone.
        warmup: folder of warmup's model, which is simply continued.
        joint: folder of joint, whose compute is matched.
        states: hidden states of a split, for the warmup control.
        examples: token ids of a split, for the backbone control.
        fit: joint's training loop.
        fit_backbone: the backbone's training loop.
        lora: the adapters (``pipeline.models.lora``).
        fit_lora: their training loop; None = without them.
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
    continued, tokens = base.model(), partial(examples, backbone=base)
    folder = Path(out) / "lora"  # the first, for it leaves the backbone's weights as they are
    lora_phase.run_lora(
        "controls/lora", lora, continued, tokens, folder, partial(checkpoint.save_model, folder, continued, base), runtime,
        fit=fit_lora, compared_with=phases["warmup"], matched=[*phases.values()],
        batch_size=backbone_batch_size, validation_batch_size=validation_batch_size, seed=seed + 1,
    )  # fmt: skip
    folder = Path(out) / "backbone"
    phase.run_phase(
        "controls/backbone", continued, tokens, folder, partial(checkpoint.save_model, folder, continued, base), runtime,
        fit=fit_backbone, unfreeze=unfreeze_backbone, matched=[*phases.values()],
        batch_size=backbone_batch_size, validation_batch_size=validation_batch_size, seed=seed + 1,
    )  # fmt: skip
    sources, folder = partial(states, backbone=base), Path(out) / "warmup"
    refined = checkpoint.load_refined(phases["warmup"], base, "warmup", sources("train").layer)
    phase.run_phase(
        "controls/warmup", refined, sources, folder, partial(checkpoint.save_model, folder, refined, base, phases["warmup"]),
        runtime, fit=fit, unfreeze=unfreeze, batch_size=batch_size, validation_batch_size=validation_batch_size, seed=seed + 1,
        matched=[phases["joint"]],
    )  # fmt: skip
