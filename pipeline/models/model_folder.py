"""A model's folder: ``model.safetensors`` and ``model.json``, its manifest, which says what the weights are and what they were
trained from. Its one reader; never pickle.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.manifests import HASHES, INPUTS, STAGE, Manifest, write_manifest

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
METRICS, CURVES = "metrics.json", "curves.csv"  # of a phase: covered by its ``model.json``
VALIDATION = "validation.csv"  # to be read while a phase goes on; ``metrics.json`` holds the same numbers
UNFINISHED = "unfinished"  # a file that a phase's folder holds until the phase has ended
PHASES = {  # that train the models which evaluation and report know by these names
    "backbone": "backbone", "warmup": "warmup", "joint": "joint", "finetune": "finetune",
    "control_backbone": "controls/backbone", "control_warmup": "controls/warmup", "control_adapter": "controls/optional/adapter",
    "control_lora": "controls/optional/lora", "control_refiner_lora": "controls/optional/refiner_lora",
}  # fmt: skip


def check_weights(weights: Mapping[str, Tensor], needed: Iterable[str], origin: Path, stage: str) -> None:
    """Check that a file of weights holds all that a model needs of it, and numbers alone.

    Raises:
        DataError: a weight is missing or not finite; names it.
    """
    if missing := sorted(set(needed) - set(weights)):
        raise DataError(f"{origin} lacks {len(missing)} weights of the model, '{missing[0]}' first; run dvc repro {stage}")
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DataError(f"{origin}: weight '{name}' holds numbers that are not finite; run dvc repro {stage}")


class ModelFolder:
    """A folder whose ``model.json`` is read, and whose weights are not.

    Args:
        path: of the folder.
        stage: that writes it, named in errors.
        phase: that must have written it, if it says which did; None = any.

    Attributes:
        manifest: what ``model.json`` holds, with hashes of the files beside it and of what they were made from.
        kind: "backbone", "refined" (a refiner over one) or "backbone_trained_on".
        description: the manifest's content.
        weights: file of the weights; the folder of a pretrained backbone that is taken as it came has none.

    Raises:
        DataError: ``model.json`` is missing, was changed, or describes no model; another phase wrote the folder; or the phase that
            writes it has not finished.
    """

    def __init__(self, path: str | Path, stage: str, phase: str | None = None) -> None:
        self.path, self.stage = Path(path), stage
        if (self.path / UNFINISHED).exists():
            raise DataError(
                f"{self.path} is of a phase that did not finish ({UNFINISHED}); run it again, it goes on where it last saved: "
                f"dvc repro {stage}"
            )
        self.manifest = Manifest(self.path / DESCRIPTION, stage, phase)
        self.description: dict[str, Any] = self.manifest.content
        if "kind" not in self.description:
            raise DataError(f"{self.path / DESCRIPTION} does not describe a model; run dvc repro {stage}")
        self.kind: str = self.description["kind"]
        self.weights = self.path / WEIGHTS

    def metrics(self) -> dict[str, Any]:
        """Read the numbers of the phase that wrote the folder."""
        return self.manifest.json(METRICS)


def phase_at(path: Path) -> str | None:
    """Name the phase whose model lies at a place of the pipeline's own, ``outputs/joint`` for example; None elsewhere."""
    places = {("data", "backbone"): "backbone"} | {("outputs", *phase.split("/")): phase for phase in PHASES.values()}
    return next((places[path.parts[-n:]] for n in (2, 3, 4) if path.parts[-n:] in places), None)


def phase_folder(name: str, path: str | Path) -> ModelFolder:
    """Open the folder of a model that evaluation and report know by ``name``: for a name of ``PHASES``, of its phase alone."""
    phase = PHASES.get(name)
    return ModelFolder(path, phase.partition("/")[0] if phase else Path(path).name, phase)


def seal(folder: Path, phase: str, inputs: Mapping[str, str]) -> None:
    """Say in a finished phase's ``model.json`` which phase it was and what it was trained on, and cover its metrics and curves.

    Args:
        folder: of the phase, with its model.
        phase: its name.
        inputs: digests of what it was made from beside what the model names, by stage.
    """
    content = Manifest(folder / DESCRIPTION, phase.partition("/")[0]).content
    names = [METRICS, *sorted(file.name for file in folder.glob("*.csv") if file.name != VALIDATION)]
    hashes = {name: sha256(folder / name) for name in names}
    more = {STAGE: phase, HASHES: {**content.get(HASHES, {}), **hashes}, INPUTS: {**inputs, **content.get(INPUTS, {})}}
    write_manifest(folder / DESCRIPTION, {**content, **more})
