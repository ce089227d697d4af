"""The phase of low-rank adapters: in a frozen backbone, alone or below a refiner that is trained too; saved as plain weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from components.backbones.backbone import BackboneModel
from components.refined_lm import RefinedLM
from pipeline.data.batches import Source
from pipeline.machine.runtime import Runtime
from pipeline.models.lora import TRAINED, Lora
from pipeline.models.model_folder import ModelFolder
from pipeline.training import phase

REFINER = "refiner"  # module path of what is trained beside adapters


def run_lora(
    name: str,
    lora: Lora,
    model: BackboneModel | RefinedLM,
    sources: Callable[[str], Source],
    out: Path,
    save: Callable[[], None],
    runtime: Runtime,
    *,
    compared_with: ModelFolder,
    seed: int,
    **settings: Any,
) -> None:
    """Train adapters in a backbone, whose own weights are the same before and after, and the refiner over it, if there is one.

    Args:
        name: of the phase.
        lora: which adapters.
        model: the backbone, or a refiner over it.
        sources: batches of a split.
        out: folder of the phase.
        save: writes the model, which is made of plain layers when it is called.
        runtime: where it computes.
        compared_with: the phase whose number of trained parameters the adapters are to have.
        seed: of the adapters' first values and the order of the examples.
        settings: of ``phase.run_phase``, to which all goes on.
    """
    below, trains = (model.backbone, (*TRAINED, REFINER)) if isinstance(model, RefinedLM) else (model, TRAINED)
    adapted = lora(below, compared_with.metrics()["parameters"]["trainable"], seed)
    print(f"{name}: {adapted}", flush=True)
    phase.run_phase(
        name, model, sources, out, partial(adapted.while_merged, save), runtime,
        unfreeze=trains, seed=seed, facts={"lora": adapted.facts()}, **settings,
    )  # fmt: skip
    adapted.remove()
