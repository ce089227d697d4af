"""A backbone on disk: ``model.safetensors`` + ``model.json`` with architecture, vocabulary and fingerprint. Never pickle.

Of a pretrained model taken as it came the weights stay where they are. One that was trained lies here as a whole, with its
``config.json``, as transformers reads any checkpoint.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from components.backbones.backbone import BackboneModel
from components.backbones.backbones import build_backbone
from components.backbones.pretrained_lm import PretrainedLM
from components.backbones.sentence_table import SentenceTable
from pipeline.corpora.prepared import SENTENCES, Prepared, Vocabulary
from pipeline.errors import ConfigError, DataError
from pipeline.files import sha256, verify, write_json
from pipeline.manifests import HASHES, check_inputs, write_manifest
from pipeline.models import pretrained
from pipeline.models.model_folder import DESCRIPTION, WEIGHTS, ModelFolder, check_weights
from pipeline.tensor_files import read_tensors, write_tensors

PRETRAINED = "PretrainedLM"  # as an architecture's ``model``
CHECKPOINT = (WEIGHTS, pretrained.CONFIG)


class Backbone:
    """A backbone on disk by its architecture, vocabulary and fingerprint (sha256 of the weights).

    Args:
        folder: its path, or the folder with its description already read.

    Attributes:
        digest: of its manifest: what is made over it names this.
        files: of its folder that hold the model; none of a pretrained one that is taken as it came.

    Raises:
        DataError: the folder is missing, holds another kind of model, or is not what its manifest says.
    """

    def __init__(self, folder: str | Path | ModelFolder) -> None:
        model_folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder, "backbone")
        self.folder, description = model_folder.path, model_folder.description
        if model_folder.kind != "backbone":
            raise DataError(f"{self.folder} holds a model of kind '{model_folder.kind}', not a backbone; run dvc repro backbone")
        self.fingerprint: str = description["fingerprint"]
        self.architecture: dict[str, Any] = description["architecture"]
        self.vocabulary = Vocabulary(**description["vocabulary"])
        self.description, self.digest, self.inputs = description, model_folder.manifest.digest, model_folder.manifest.inputs
        self.files: tuple[str, ...] = (WEIGHTS,)
        if self.architecture["model"] == PRETRAINED:  # the hub's files are looked at when they are read
            self.files = CHECKPOINT if WEIGHTS in model_folder.manifest.hashes else ()
        for name in self.files:
            model_folder.manifest.verify(name)

    def model(self, first_layer: int = 0) -> BackboneModel:
        """The backbone, or its tail from ``first_layer`` on: layers below are not even instantiated."""
        if self.architecture["model"] == PRETRAINED:
            return pretrained.load_pretrained(self.description, first_layer, self.folder if self.files else None)
        with torch.device("meta"):  # without weights, which are set from the file: they are there once
            model = build_backbone(self.architecture, first_layer)
        names = set(model.state_dict())
        weights = read_tensors(self.folder / WEIGHTS, names)
        check_weights(weights, names, self.folder / WEIGHTS, "backbone")
        model.load_state_dict(weights, assign=True)
        return model

    @cached_property
    def trunk(self) -> BackboneModel:
        """The whole backbone, frozen: loaded once, however many splits' states come from it."""
        return self.model().eval().requires_grad_(False)

    def check(self, prepared: Prepared) -> None:
        """Raise DataError unless the backbone was made from these data, and so speaks of the same token ids."""
        if prepared.vocabulary != self.vocabulary:
            raise DataError(
                f"{prepared.folder} was made with {_differences(asdict(prepared.vocabulary), asdict(self.vocabulary))} than the "
                f"backbone in {self.folder}; run dvc repro backbone"
            )
        check_inputs(self.folder, self.inputs, {"prepare": prepared.digest}, prepared.folder, "backbone")
        if "origin" in self.description:  # a table of sentences: the same number of ids does not make them the same
            verify(prepared.folder / SENTENCES, self.description["origin"]["sentences"], "backbone")

    def check_over(self, inputs: Mapping[str, str], origin: Path, stage: str) -> None:
        """Raise DataError unless ``origin``, made from these inputs, was made over this backbone, and from its data."""
        check_inputs(origin, inputs, {**self.inputs, "backbone": self.digest}, self.folder, stage)


def save_backbone(folder: Path, model: BackboneModel, vocabulary: Vocabulary) -> None:
    """Write a whole backbone; of a pretrained one that nothing was trained of, where its weights lie and what they are."""
    description = {"kind": "backbone", "architecture": model.architecture, "vocabulary": asdict(vocabulary)}
    if isinstance(model, PretrainedLM):
        description |= pretrained.describe_pretrained(model)
        if any(parameter.requires_grad for parameter in model.parameters()):
            pretrained.check_trainable(model)
            description |= _write_checkpoint(folder, model.model)
        write_manifest(folder / DESCRIPTION, description)
        return
    if isinstance(model, SentenceTable):
        description |= {"origin": model.origin}
    write_tensors(folder / WEIGHTS, model.state_dict())
    digest = sha256(folder / WEIGHTS)
    write_manifest(folder / DESCRIPTION, {**description, "fingerprint": digest, HASHES: {WEIGHTS: digest}})


def check_causal(backbone: BackboneModel, causal: bool) -> None:
    """Raise ConfigError unless the backbone predicts what the data asks for (``causal``: the next token)."""
    if backbone.causal != causal:
        kinds = {False: "masked tokens", True: "the next token"}
        raise ConfigError(
            f"the backbone predicts {kinds[backbone.causal]}, the data asks for {kinds[causal]}: jsonl.QuestionAnswers.causal and "
            "the backbone (pretrained.model.objective) must agree"
        )


def _write_checkpoint(folder: Path, model: Any) -> dict[str, Any]:
    """Write a model of transformers as it reads one, tied weights once; returns the fingerprint, and the sha256 of both files."""
    state = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    weights = {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}
    write_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    write_json(folder / pretrained.CONFIG, model.config.to_diff_dict())
    hashes = {name: sha256(folder / name) for name in CHECKPOINT}
    return {"fingerprint": hashes[WEIGHTS], HASHES: hashes}


def check_sound(backbone: BackboneModel) -> None:
    """Raise ConfigError if a pretrained backbone is not what it is taken for: told before hours of training are spent on it."""
    if isinstance(backbone, PretrainedLM):
        pretrained.checked(backbone)


def _differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    return ", ".join(f"{k} {a[k]} instead of {b[k]}" for k in a if a[k] != b[k])
