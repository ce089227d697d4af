"""controls: what the same compute buys without the refiner's phases. Runs that are matched in floating-point operations."""

from collections.abc import Callable, Sequence
from pathlib import Path

from components.ranges import PositiveFloat, PositiveInt, Seed
from components.refiners.core import Core
from pipeline.data.batches import Sources
from pipeline.machine.runtime import Runtime
from pipeline.models import checkpoint
from pipeline.models.backbones import Backbone
from pipeline.models.lora import Lora
from pipeline.training.controls import Controls
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
    refiner_lora_states: Sources,
    fit_refiner_lora: Callable[..., TrainState] | None,
    adapter: Callable[..., Core],
    fit_adapter: Callable[..., TrainState] | None,
    rates: Sequence[PositiveFloat],
    unfreeze: Sequence[str],
    unfreeze_backbone: Sequence[str],
    batch_size: PositiveInt,
    backbone_batch_size: PositiveInt,
    validation_batch_size: PositiveInt,
    seed: Seed,
    runtime: Runtime,
) -> None:
    """Write ``out/backbone`` and ``out/warmup``, and below ``out/optional`` those that are on (docs/evaluation.md).

    Args:
        out: folder of all.
        backbone: folder of the backbone.
        warmup: folder of warmup's model, which is simply continued.
        joint: folder of joint, whose compute is matched.
        states: hidden states of a split, for the controls over the frozen trunk.
        examples: token ids of a split, for those from the first layer on.
        fit: joint's training loop.
        fit_backbone: the backbone's training loop.
        lora: the adapters (``pipeline.models.lora``).
        fit_lora: their training loop; None = without them.
        refiner_lora_states: where adapters are, beside a refiner: @sources.cached = above the trunk, @sources.tokens = everywhere.
        fit_refiner_lora: training loop of refiner and adapters together; None = without them.
        adapter: makes a refiner without recursion from ``dim`` and ``parameters``.
        fit_adapter: its training loop; None = without it.
        rates: multipliers of every control's learning rates; each is trained with all, and the best on validation is taken.
        unfreeze: module paths that warmup trains.
        unfreeze_backbone: module paths that are trained of the backbone alone; "" is everything.
        batch_size: sequences of a microbatch over stored states.
        backbone_batch_size: of the backbone.
        validation_batch_size: sequences that are validated together; changes memory, and no weights.
        seed: of masks and order.
        runtime: where it computes.
    """
    runtime.enter_process()
    base = Backbone(backbone)
    phases = checkpoint.open_phases({"warmup": warmup, "joint": joint}, base)
    controls = Controls(
        out=Path(out), base=base, phases=phases, states=states, examples=examples, rates=rates, batch_size=batch_size,
        backbone_batch_size=backbone_batch_size, validation_batch_size=validation_batch_size, seed=seed, runtime=runtime,
    )  # fmt: skip
    controls.adapter(adapter, fit_adapter)
    controls.refiner_lora(lora, refiner_lora_states, fit_refiner_lora)
    controls.lora(lora, fit_lora)
    controls.backbone(unfreeze_backbone, fit_backbone)
    controls.warmup(unfreeze, fit)
