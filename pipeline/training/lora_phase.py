"""The phase of the LoRA control: adapters in a frozen backbone, trained as any phase is, and saved merged into plain weights."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from components.backbones.backbone import BackboneModel
from pipeline.data.batches import Source
from pipeline.machine.runtime import Runtime
from pipeline.models.lora import TRAINED, Lora
from pipeline.models.model_folder import ModelFolder
from pipeline.training import phase
from pipeline.training.train_state import TrainState


def run_lora(
    name: str,
    lora: Lora,
    model: BackboneModel,
    sources: Callable[[str], Source],
    out: Path,
    save: Callable[[], None],
    runtime: Runtime,
    *,
    fit: Callable[..., TrainState] | None,
    compared_with: ModelFolder,
    seed: int,
    batch_size: int,
    validation_batch_size: int,
    matched: Sequence[ModelFolder],
) -> None:
    """Train adapters in ``model``, whose own weights are the same before and after; see ``phase.run_phase``.

    Args:
        name: of the phase.
        lora: which adapters.
        model: the backbone.
        sources: batches of a split.
        out: folder of the phase.
        save: writes the model, which is made of plain layers when it is called.
        runtime: where it computes.
        fit: the training loop; None = the phase is off.
        compared_with: the phase whose number of trained parameters the adapters are to have.
        seed: of the adapters' first values and the order of the examples.
        batch_size: sequences of a microbatch.
        validation_batch_size: sequences that are validated together.
        matched: phases whose floating-point operations are to be spent.
    """
    if fit is None:
        model.requires_grad_(False)  # nothing of it is stored a second time
        phase.skipped(name, out, save)
        return
    adapted = lora(model, compared_with.metrics()["parameters"]["trainable"], seed)
    print(f"{name}: {adapted}", flush=True)
    phase.run_phase(
        name, model, sources, out, partial(adapted.while_merged, save), runtime,
        fit=fit, unfreeze=TRAINED, batch_size=batch_size, validation_batch_size=validation_batch_size, seed=seed, matched=matched,
        facts={"lora": adapted.facts()},
    )  # fmt: skip
    adapted.remove()
