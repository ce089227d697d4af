"""Trained models on disk: ``model.safetensors`` + ``model.json``. Never pickle.

A trained model holds the refiner and the layers that were trained, and names the backbone's digest; loading puts it over the
backbone in ``data/backbone``. So frozen weights are stored once.
"""

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.backbones.backbone import BackboneModel
from components.model import Model
from components.nn.masters import widen
from components.nn.sharing import twin
from components.refined_lm import RefinedLM
from components.refiners.architectures import build_core
from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.manifests import HASHES, INPUTS, check_inputs, write_manifest
from pipeline.models.backbones import Backbone
from pipeline.models.model_folder import DESCRIPTION, PHASES, WEIGHTS, ModelFolder, check_weights, phase_folder
from pipeline.tensor_files import read_tensors, tensor_names, write_tensors


def save_model(folder: Path, model: Model, backbone: Backbone, start: ModelFolder | None = None) -> None:
    """Write the refiner and what was trained of the backbone, by this phase (``requires_grad``) or by one before.

    Args:
        folder: where to.
        model: over ``backbone``.
        backbone: whose digest is named; nothing is read of it.
        start: the model that this one was trained on from: its digest is named, and what it holds is stored again, trained or not.
    """
    refined = isinstance(model, RefinedLM)
    prefix = "" if refined else "backbone."
    chosen = {prefix + name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    chosen |= set() if start is None else tensor_names(start.weights).keys()
    first = _first_names(model)
    weights = {prefix + name: value for name, value in model.state_dict().items() if first[name] == name}
    stored = {name: value for name, value in weights.items() if name in chosen or name.startswith("refiner.")}
    write_tensors(folder / WEIGHTS, stored)
    before = {} if start is None else {start.manifest.writer or "start": start.manifest.digest}
    description: dict[str, Any] = {
        "kind": "refined" if refined else "backbone_trained_on",
        INPUTS: {"backbone": backbone.digest, **before},
        HASHES: {WEIGHTS: sha256(folder / WEIGHTS)},
    }
    if isinstance(model, RefinedLM):
        description["refiner"] = model.refiner.architecture
    write_manifest(folder / DESCRIPTION, description)


def load_model(
    folder: str | Path | ModelFolder, backbone: Backbone, stage: str, first_layer: int = 0, base: BackboneModel | None = None
) -> Model:
    """Load what ``save_model`` wrote, over ``backbone``.

    Args:
        folder: of the model, its description read or not.
        backbone: the one it was trained over.
        stage: that wrote it, named in errors.
        first_layer: lowest layer to instantiate.
        base: the loaded backbone: weights that were not trained are its own tensors, so that several models cost the memory of
            one, and those that were are in its precision, in which they are read; None = read anew, for a model that is to be
            trained: with float32 masters.

    Raises:
        DataError: missing, damaged, trained over another backbone or in layers below ``first_layer``, or of another version.
    """
    model_folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder, stage)
    description = model_folder.description
    if model_folder.kind == "backbone":
        raise DataError(f"{model_folder.path} holds a backbone, expected the model of stage {stage}; run dvc repro {stage}")
    model_folder.manifest.verify(WEIGHTS)
    backbone.check_over(model_folder.manifest.inputs, model_folder.path, stage)
    under, weights = backbone.model(first_layer) if base is None else twin(base), read_tensors(model_folder.weights)
    model: Model = under
    if "refiner" in description:
        try:
            refiner = build_core(description["refiner"])
        except ValueError as error:
            raise DataError(
                f"{model_folder.path} describes no model that this version can build: {error}; run dvc repro {stage}"
            ) from None
        model = RefinedLM(under, refiner)
    else:
        weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
    known = model.state_dict(keep_vars=True)
    unexpected = sorted(set(weights) - set(known))
    if unexpected:
        raise DataError(f"{model_folder.path} holds '{unexpected[0]}', which a model from layer {first_layer} on does not have")
    needed = [name for name in known if name.startswith("refiner.")]
    check_weights(weights, needed, model_folder.weights, stage)
    if base is None:  # training goes on from the masters; whoever only reads them reads them rounded
        masters = [known[name] for name, value in weights.items() if value.dtype == torch.float32]
        widen(model, masters, partial(torch.empty_like, dtype=torch.float32))
        known = model.state_dict(keep_vars=True)
    placed = {name: _placed(value, known[name]) for name, value in weights.items()}
    placed = {name: placed[own] for name, own in _first_names(model).items() if own in placed} | placed
    model.load_state_dict(placed, strict=False, assign=base is not None)  # never written into what is shared
    return model


def open_phases(folders: Mapping[str, str | Path], backbone: Backbone) -> dict[str, ModelFolder]:
    """Open folders of models that were trained over a backbone; those of the pipeline's own names belong together.

    Args:
        folders: by name; a name of ``PHASES`` takes the model of that phase alone, trained on from those that are here.
        backbone: of all of them.

    Raises:
        DataError: one is of another phase, over another backbone, or was made from another model than the one that is here.
    """
    phases = {name: phase_folder(name, folder) for name, folder in folders.items()}
    for folder in phases.values():
        backbone.check_over(folder.manifest.inputs, folder.path, folder.stage)
    for before, after in product([name for name in phases if name in PHASES], repeat=2):
        folder, digests = phases[after], {PHASES[before]: phases[before].manifest.digest}
        check_inputs(folder.path, folder.manifest.inputs, digests, phases[before].path, folder.stage)
    return phases


def load_refined(folder: str | Path | ModelFolder, backbone: Backbone, stage: str, first_layer: int) -> RefinedLM:
    """Load a model to be trained on; all of it is frozen until a phase says what it trains.

    Raises:
        DataError: as ``load_model``; or the folder holds a model without a refiner.
    """
    model = load_model(folder, backbone, stage, first_layer)
    if not isinstance(model, RefinedLM):
        place = folder.path if isinstance(folder, ModelFolder) else folder
        raise DataError(f"{place} holds a backbone without a refiner; expected the model of stage {stage}")
    model.requires_grad_(False)
    return model


def _first_names(model: nn.Module) -> dict[str, str]:
    """The name under which each weight is stored: its own, or of a tensor that several modules share the first."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """A weight as the model holds it; one object, which places that share it take as it is."""
    return nn.Parameter(value.to(like), requires_grad=like.requires_grad) if like.is_floating_point() else value.to(like)
