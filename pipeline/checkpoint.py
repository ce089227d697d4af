"""Models on disk: ``model.safetensors`` + ``model.json``. Never pickle.

A trained model holds only what differs from its backbone (the refiner, and the layers that were trained) and names the backbone's
fingerprint; loading puts it over the backbone in ``data/backbone``. So frozen weights are stored once, however many phases there are.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from components.recursion import State
from components.refined_lm import RefinedLM
from components.refiner import SlotRefiner
from components.tiny_lm import TinyLM
from pipeline.errors import DataError
from pipeline.files import read_json, sha256, verify, write_atomic, write_json
from pipeline.prepared import Vocabulary

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class Backbone:
    """A backbone folder, opened: its architecture, vocabulary and fingerprint (sha256 of the weights).

    Raises:
        DataError: the folder is missing or its weights are not what the description says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        description = read_json(self.folder / DESCRIPTION, "backbone")
        self.fingerprint: str = description["fingerprint"]
        self.architecture: dict[str, int] = description["architecture"]
        self.vocabulary = Vocabulary(**description["vocabulary"])
        verify(self.folder / WEIGHTS, self.fingerprint, "backbone")

    def state(self) -> dict[str, Tensor]:
        """All weights by name."""
        return load_file(self.folder / WEIGHTS)

    def model(self, first_layer: int = 0) -> TinyLM:
        """The backbone, or its tail from ``first_layer`` on: layers below are not even instantiated."""
        model = TinyLM(**self.architecture, first_layer=first_layer)
        kept = set(model.state_dict())
        model.load_state_dict({name: value for name, value in self.state().items() if name in kept})
        return model

    def check(self, vocabulary: Vocabulary, origin: Path) -> None:
        """Raise DataError unless data and backbone speak of the same token ids."""
        if vocabulary != self.vocabulary:
            raise DataError(
                f"{origin} was made with {_differences(asdict(vocabulary), asdict(self.vocabulary))} than the backbone in "
                f"{self.folder}; run dvc repro backbone"
            )

    def check_fingerprint(self, fingerprint: str, origin: Path, stage: str) -> None:
        """Raise DataError unless ``origin`` was made with this backbone."""
        if fingerprint != self.fingerprint:
            raise DataError(
                f"{origin} belongs to backbone {fingerprint[:12]}, but {self.folder} holds {self.fingerprint[:12]}; "
                f"run dvc repro {stage}"
            )


def save_backbone(folder: Path, model: TinyLM, vocabulary: Vocabulary) -> None:
    """Write a whole backbone."""
    write_atomic(folder / WEIGHTS, save(_contiguous(model.state_dict())))
    description = {
        "kind": "backbone",
        "architecture": model.architecture,
        "vocabulary": asdict(vocabulary),
        "fingerprint": sha256(folder / WEIGHTS),
    }
    write_json(folder / DESCRIPTION, description)


def save_model(folder: Path, model: RefinedLM | TinyLM, backbone: Backbone) -> None:
    """Write what differs from ``backbone``."""
    refined = isinstance(model, RefinedLM)
    base = backbone.state()
    weights = {name if refined else f"backbone.{name}": value for name, value in model.state_dict().items()}
    kept = {
        name: value
        for name, value in weights.items()
        if not name.startswith("backbone.") or not torch.equal(value.cpu(), base[name.removeprefix("backbone.")])
    }
    write_atomic(folder / WEIGHTS, save(_contiguous(kept)))
    description: dict[str, Any] = {
        "kind": "refined" if refined else "backbone_trained_on",
        "backbone": backbone.fingerprint,
        "sha256": sha256(folder / WEIGHTS),
    }
    if isinstance(model, RefinedLM):
        description["refiner"] = model.refiner.architecture
    write_json(folder / DESCRIPTION, description)


def load_model(folder: str | Path, backbone: Backbone, stage: str, first_layer: int = 0) -> RefinedLM | TinyLM:
    """Load what ``save_model`` wrote, over ``backbone``.

    Args:
        folder: of the model.
        backbone: the one it was trained over.
        stage: that wrote it, named in errors.
        first_layer: lowest layer to instantiate.

    Raises:
        DataError: missing, damaged, trained over another backbone, or trained in layers below ``first_layer``.
    """
    folder = Path(folder)
    description = read_json(folder / DESCRIPTION, stage)
    verify(folder / WEIGHTS, description["sha256"], stage)
    backbone.check_fingerprint(description["backbone"], folder, stage)
    model: RefinedLM | TinyLM = backbone.model(first_layer)
    weights = load_file(folder / WEIGHTS)
    if "refiner" in description:
        model = RefinedLM(model, SlotRefiner(**description["refiner"]))
    else:
        weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
    unexpected = sorted(set(weights) - set(model.state_dict()))
    if unexpected:
        raise DataError(f"{folder} holds '{unexpected[0]}', which a model from layer {first_layer} on does not have")
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def load_refined(
    folder: str | Path, backbone: Backbone, stage: str, first_layer: int, recursion: Callable[..., Iterator[State]]
) -> RefinedLM:
    """``load_model`` of a model to be trained on.

    Raises:
        DataError: as ``load_model``; or the folder holds a model without a refiner.
    """
    model = load_model(folder, backbone, stage, first_layer)
    if not isinstance(model, RefinedLM):
        raise DataError(f"{folder} holds a backbone without a refiner; expected the model of stage {stage}")
    model.recursion = recursion
    return model


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    return ", ".join(f"{k} {a[k]} instead of {b[k]}" for k in a if a[k] != b[k])
