"""A model's folder: ``model.safetensors`` and ``model.json``, which says what the weights are. Its one reader; never pickle."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import read_json

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
UNFINISHED = "unfinished"  # a file that a phase's folder holds until the phase has ended


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

    Attributes:
        kind: "backbone", "refined" (a refiner over one) or "backbone_trained_on".
        description: what ``model.json`` holds.
        weights: file of the weights; a pretrained backbone's folder has none.

    Raises:
        DataError: ``model.json`` is missing, or describes no model; or the phase that writes the folder has not finished.
    """

    def __init__(self, path: str | Path, stage: str) -> None:
        self.path, self.stage = Path(path), stage
        if (self.path / UNFINISHED).exists():
            raise DataError(
                f"{self.path} is of a phase that did not finish ({UNFINISHED}); run it again, it goes on where it last saved: "
                f"dvc repro {stage}"
            )
        description = read_json(self.path / DESCRIPTION, stage)
        if not isinstance(description, dict) or "kind" not in description:
            raise DataError(f"{self.path / DESCRIPTION} does not describe a model; run dvc repro {stage}")
        self.description: dict[str, Any] = description
        self.kind: str = description["kind"]
        self.weights = self.path / WEIGHTS
