"""A model's folder: ``model.safetensors`` and ``model.json``, which says what the weights are. Its one reader; never pickle."""

from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


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
        DataError: ``model.json`` is missing, or describes no model.
    """

    def __init__(self, path: str | Path, stage: str) -> None:
        self.path, self.stage = Path(path), stage
        description = read_json(self.path / DESCRIPTION, stage)
        if not isinstance(description, dict) or "kind" not in description:
            raise DataError(f"{self.path / DESCRIPTION} does not describe a model; run dvc repro {stage}")
        self.description: dict[str, Any] = description
        self.kind: str = description["kind"]
        self.weights = self.path / WEIGHTS
