"""Models to be used: a trained model over its backbone, or a folder that holds both and stands alone. Never pickle.

An exported folder is the model's folder with its backbone's as ``backbone/``, the tokenizer if it reads text, a model card, and
``export.json``, its manifest, with the sha256 of every file that decides what the model says. Of a pretrained backbone that was
taken as it came ``backbone/`` names where the weights lie and what they are; they are not copied.
"""

from dataclasses import dataclass
from pathlib import Path

from components.model import Model
from pipeline.corpora.prepared import Prepared
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.files import absence, sha256
from pipeline.manifests import Manifest
from pipeline.models import hub
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.models.model_folder import DESCRIPTION, WEIGHTS, ModelFolder, phase_at
from pipeline.text.prompts import Prompts
from pipeline.text.rendering import rendering_of

MANIFEST, BASE = "export.json", "backbone"
MEND = "copy it again, or: python -m stages export"
NEEDED = {DESCRIPTION, WEIGHTS, f"{BASE}/{DESCRIPTION}"}


@dataclass(frozen=True)
class InferenceModel:
    """A model that answers prompts, its backbone, and how prompts are written."""

    model: Model
    backbone: Backbone
    prompts: Prompts


def load_inference_model(folder: Path, backbone: Path, prepared: Path, *, remote_code: bool = False) -> InferenceModel:
    """Load a trained model over its backbone, a backbone alone, or an exported model.

    Args:
        folder: of the model.
        backbone: folder of the backbone of what is not exported.
        prepared: folder of the prepared data, with the tokenizer; of what is not exported.
        remote_code: code that comes with an exported model's backbone may run.

    Raises:
        ConfigError: it asks to run code, and may not; or it predicts embeddings.
        DataError: something is missing, damaged, of another backbone or of another version.
    """
    if is_exported := (folder / MANIFEST).is_file():
        check(folder)
        backbone, prepared = folder / BASE, folder
    stage = "backbone" if folder == backbone else folder.name
    model_folder = open_model_folder(folder)
    try:
        base_folder = model_folder if model_folder.kind == "backbone" else ModelFolder(backbone, "backbone")
        for each in (model_folder, base_folder) if is_exported else ():
            each.manifest.verified.add(WEIGHTS)  # ``check`` has hashed them
        base = Backbone(base_folder)
        rendering = rendering_of(base.vocabulary.rendering)
        if rendering.files and not is_exported:
            base.check(Prepared(prepared))
        prompts = rendering.prompts(base.vocabulary, prepared, base.architecture["seq"])
        source = base.architecture.get("source", {})
        if is_exported and source.get("remote_code") and not remote_code:
            raise ConfigError(
                f"{folder} would run code that comes with {source['path']}; read it, then bind "
                "generation.Generator.remote_code = True"
            )
        if is_exported and not base.files and hub.describe_files(source["path"], source["revision"]) != base.description["files"]:
            raise DataError(f"the files of {source['path']} are not those that {folder} was made with")
        return InferenceModel(
            base.model() if model_folder.kind == "backbone" else load_model(model_folder, base, stage), base, prompts
        )
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{folder} describes no model that this version can build: {reason}") from None


def open_model_folder(folder: Path) -> ModelFolder:
    """Open a folder that a user names as a model.

    Raises:
        DataError: it holds none, or lies where another phase's belongs.
    """
    if not (description := folder / DESCRIPTION).is_file():
        why = f"{description} {absence(description)}"
        raise DataError(f"{folder} holds no model ({why}); train one (dvc repro), or name the folder of one: --model DIR")
    return ModelFolder(folder, folder.name, phase_at(folder))


def is_causal(folder: Path, backbone: Path, *, pipeline: bool) -> bool | None:
    """Tell whether the model that answers from a folder writes token after token; None where only opening it will tell.

    Args:
        folder: of the model, as ``load_inference_model`` takes it.
        backbone: folder of the backbone of what is not exported.
        pipeline: whether the pipeline's own models do, which need not be there yet.
    """
    if (folder / MANIFEST).is_file():
        backbone = folder / BASE
    elif _holds_backbone(folder):
        backbone = folder
    if phase_at(backbone) == "backbone":
        return pipeline
    try:
        return bool(ModelFolder(backbone, "backbone").description["vocabulary"]["causal"])
    except (DataError, KeyError, TypeError):
        return None


def _holds_backbone(folder: Path) -> bool:
    try:
        return ModelFolder(folder, folder.name).kind == "backbone"
    except DataError:
        return False


def check(folder: Path) -> None:
    """Raise DataError unless every file of an exported folder is what it was."""
    try:
        hashes = Manifest(folder / MANIFEST, "export", "export").hashes
    except DataError:
        raise DataError(f"{folder / MANIFEST} is not what an export wrote; {MEND}") from None
    if not set(hashes) >= NEEDED:
        raise DataError(f"{folder / MANIFEST} does not list what an exported model needs; {MEND}")
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing; {MEND}")
        if (digest := sha256(folder / name)) != expected:
            raise DataError(f"{folder / name} is damaged: sha256 {digest[:12]}, {MANIFEST} says {str(expected)[:12]}; {MEND}")
