"""Models to be used: a trained model over its backbone, or a folder that holds both and stands alone. Never pickle.

An exported folder is the model's folder with its backbone's as ``backbone/``, the tokenizer if it reads text, a model card, and
``export.json`` with the sha256 of every file that decides what the model says. Of a pretrained backbone ``backbone/`` names where
the weights lie and what they are; they are not copied.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.model import Model
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.files import read_json, sha256
from pipeline.models import hub
from pipeline.models.backbones import DESCRIPTION, WEIGHTS, Backbone
from pipeline.models.checkpoint import load_model

MANIFEST, BASE = "export.json", "backbone"
MEND = "copy it again, or: python -m stages export"
NEEDED = {DESCRIPTION, WEIGHTS, f"{BASE}/{DESCRIPTION}"}


@dataclass(frozen=True)
class Opened:
    """A model, its backbone, and the folder with its tokenizer."""

    model: Model
    backbone: Backbone
    texts: Path


def opened(model: Path, backbone: Path, prepared: Path, *, remote_code: bool = False) -> Opened:
    """A trained model over its backbone, a backbone alone, or an exported model.

    Args:
        model: its folder.
        backbone: of what is not exported.
        prepared: folder of the prepared data, with the tokenizer; of what is not exported.
        remote_code: code that comes with an exported model's backbone may run.

    Raises:
        ConfigError: it asks to run code, and may not; or it predicts embeddings.
        DataError: something is missing, damaged, of another backbone or of another version.
    """
    alone = (model / MANIFEST).is_file()
    if alone:
        check(model)
        backbone, prepared = model / BASE, model
    stage = "backbone" if model == backbone else model.name
    found = kind(model)
    try:
        base = Backbone(model if found == "backbone" else backbone)
        if base.vocabulary.rendering == "sentences":
            raise ConfigError(
                f"{base.folder} predicts embeddings of sentences; only models of tokens answer prompts and are exported"
            )
        source = base.architecture.get("source", {})
        if alone and source.get("remote_code") and not remote_code:
            raise ConfigError(
                f"{model} would run code that comes with {source['path']}; read it, then bind "
                "generation.Generator.remote_code = True"
            )
        if alone and source and hub.described(source["path"], source["revision"]) != base.description["files"]:
            raise DataError(f"the files of {source['path']} are not those that {model} was made with")
        return Opened(base.model() if found == "backbone" else load_model(model, base, stage), base, prepared)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{model} describes no model that this version can build: {told}") from None


def check(folder: Path) -> None:
    """Raise DataError unless every file of an exported folder is what it was."""
    try:
        manifest = read_json(folder / MANIFEST, "export")
    except DataError:
        raise DataError(f"{folder / MANIFEST} is not valid JSON; {MEND}") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not set(files) >= NEEDED:
        raise DataError(f"{folder / MANIFEST} does not list what an exported model needs; {MEND}")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing; {MEND}")
        if (found := sha256(folder / name)) != expected:
            raise DataError(f"{folder / name} is damaged: sha256 {found[:12]}, {MANIFEST} says {str(expected)[:12]}; {MEND}")


def kind(model: Path) -> Any:
    """What a folder says that its model is: "refined", "backbone_trained_on" or "backbone".

    Raises:
        DataError: it is missing, or describes no model.
    """
    if not (model / DESCRIPTION).is_file():
        raise DataError(f"{model} holds no model; train one (dvc repro), or name the folder of one: --model DIR")
    description = read_json(model / DESCRIPTION, model.name)
    if not isinstance(description, dict) or "kind" not in description:
        raise DataError(f"{model / DESCRIPTION} does not describe a model")
    return description["kind"]
