"""Trained models on disk: ``model.safetensors`` + ``model.json``. Never pickle.

A trained model holds only what differs from its backbone (the refiner, and the layers that were trained) and names the
backbone's fingerprint; loading puts it over the backbone in ``data/backbone``. So frozen weights are stored once.
"""

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from components.backbones.backbone import BackboneModel
from components.model import Model
from components.refined_lm import RefinedLM
from components.refiners.architectures import build_core
from pipeline.errors import DataError
from pipeline.files import read_json, sha256, verify, write_atomic, write_json
from pipeline.models.backbones import DESCRIPTION, WEIGHTS, Backbone, contiguous


def save_model(folder: Path, model: Model, backbone: Backbone) -> None:
    """Write what differs from ``backbone``."""
    refined = isinstance(model, RefinedLM)
    own = model.backbone if isinstance(model, RefinedLM) else model
    assert isinstance(own, BackboneModel)
    base = backbone.model(own.first_layer).state_dict()
    weights = {name if refined else f"backbone.{name}": value for name, value in contiguous(model.state_dict()).items()}
    kept = {
        name: value
        for name, value in weights.items()
        if not name.startswith("backbone.") or not torch.equal(value, base[name.removeprefix("backbone.")])
    }
    write_atomic(folder / WEIGHTS, save(kept))
    description: dict[str, Any] = {
        "kind": "refined" if refined else "backbone_trained_on",
        "backbone": backbone.fingerprint,
        "sha256": sha256(folder / WEIGHTS),
    }
    if isinstance(model, RefinedLM):
        description["refiner"] = model.refiner.architecture
    write_json(folder / DESCRIPTION, description)


def load_model(
    folder: str | Path, backbone: Backbone, stage: str, first_layer: int = 0, base: BackboneModel | None = None
) -> Model:
    """Load what ``save_model`` wrote, over ``backbone``.

    Args:
        folder: of the model.
        backbone: the one it was trained over.
        stage: that wrote it, named in errors.
        first_layer: lowest layer to instantiate.
        base: the loaded backbone: weights that were not trained are its own tensors, so that several models cost the memory of
            one; None = read anew, for a model that is to be trained.

    Raises:
        DataError: missing, damaged, trained over another backbone or in layers below ``first_layer``, or of another version.
    """
    folder = Path(folder)
    description = read_json(folder / DESCRIPTION, stage)
    verify(folder / WEIGHTS, description["sha256"], stage)
    backbone.check_fingerprint(description["backbone"], folder, stage)
    under, weights = backbone.model(first_layer) if base is None else _twin(base), load_file(folder / WEIGHTS)
    model: Model = under
    if "refiner" in description:
        try:
            refiner = build_core(description["refiner"])
        except ValueError as error:
            raise DataError(f"{folder}/{DESCRIPTION}: {error}; run dvc repro {stage}") from None
        model = RefinedLM(under, refiner)
    else:
        weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
    known = model.state_dict()
    unexpected = sorted(set(weights) - set(known))
    if unexpected:
        raise DataError(f"{folder} holds '{unexpected[0]}', which a model from layer {first_layer} on does not have")
    placed = {name: value.to(known[name]) for name, value in weights.items()}
    model.load_state_dict(placed, strict=False, assign=base is not None)  # never written into what is shared
    return model


def load_refined(folder: str | Path, backbone: Backbone, stage: str, first_layer: int) -> RefinedLM:
    """``load_model`` of a model to be trained on.

    Raises:
        DataError: as ``load_model``; or the folder holds a model without a refiner.
    """
    model = load_model(folder, backbone, stage, first_layer)
    if not isinstance(model, RefinedLM):
        raise DataError(f"{folder} holds a backbone without a refiner; expected the model of stage {stage}")
    return model


def _twin(model: BackboneModel) -> BackboneModel:
    """A model of its own whose weights are the given one's very tensors, until it is assigned others."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)
