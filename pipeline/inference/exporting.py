"""Writing a trained model so that it stands alone (``inference.exported``), with its model card. Same model, same bytes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from components.model import Model
from components.refined_lm import RefinedLM
from pipeline.errors import ConfigError, DataError
from pipeline.files import json_bytes, sha256, write_atomic, write_json
from pipeline.inference.exported import BASE, MANIFEST, InferenceModel, load_inference_model, open_model_folder
from pipeline.manifests import HASHES, STAGE, Manifest, sealed
from pipeline.models import hub
from pipeline.models.model_folder import DESCRIPTION, WEIGHTS, ModelFolder
from pipeline.reporting.markdown import cell, markdown
from pipeline.text.rendering import rendering_of

CARD_FILE = "README.md"
CARD = """# {name}

{what}

| | |
|---|---|
{facts}

## Use

```python
from pipeline.inference.generation import Generator

generator = Generator("path/of/this/folder")
answer = generator({prompt!r})
print(answer.text, answer.confidence, answer.evaluations)
```

or `python -m stages generate --model path/of/this/folder --prompt ...`. Nothing is unpickled.
{results}
## Files

sha256; every file is looked at when the model is loaded.

{files}
"""


def export(model: Path, backbone: Path, prepared: Path, evaluation: Path, out: Path) -> str:
    """Write a trained model and all that it needs, and a card that says what it is.

    Args:
        model: folder that a phase wrote.
        backbone: folder of its backbone.
        prepared: folder of the prepared data.
        evaluation: folder that evaluate wrote, for the card; it may be missing.
        out: where to.

    Returns:
        What was written, in words.

    Raises:
        ConfigError: ``out`` is one of the folders that are read, or holds a file in the way that no export wrote.
        DataError: as ``exported.load_inference_model``; or the model is a backbone, or exported already.
    """
    if out.resolve() in {folder.resolve() for folder in (model, backbone, prepared, evaluation)}:
        raise ConfigError(f"{out} is read here; export to another folder: --out DIR")
    if open_model_folder(model).kind == "backbone" or (model / MANIFEST).is_file():
        raise DataError(f"{model} stands alone already; export what a phase trained, such as outputs/joint")
    loaded = load_inference_model(model, backbone, prepared)
    copied = {name: model / name for name in (DESCRIPTION, WEIGHTS)} | {f"{BASE}/{DESCRIPTION}": backbone / DESCRIPTION}
    copied |= {f"{BASE}/{name}": backbone / name for name in loaded.backbone.files}
    copied |= {name: prepared / name for name in rendering_of(loaded.backbone.vocabulary.rendering).files}
    for source in copied.values():
        if not source.is_file():
            raise DataError(f"{source} does not exist; run dvc repro prepare")
    files = {name: sha256(source) for name, source in copied.items()}
    card = _card(out.absolute().name, model, loaded, files, evaluation / "metrics.json").encode()
    digest = hashlib.sha256(card).hexdigest()
    manifest = sealed({STAGE: "export", HASHES: files, "card": digest})
    _refuse_to_replace(out, {**files, CARD_FILE: digest, MANIFEST: hashlib.sha256(json_bytes(manifest)).hexdigest()})
    for name, source in copied.items():
        write_atomic(out / name, source.read_bytes())
    write_json(out / MANIFEST, manifest)
    write_atomic(out / CARD_FILE, card)
    return f"wrote {out}: {len(files)} files, {sum((out / name).stat().st_size for name in files):,} bytes, and {CARD_FILE}"


def push(out: Path, repository: str) -> str:
    """Upload an exported model, its card included, and nothing else that lies in its folder.

    Args:
        out: folder that ``export`` wrote.
        repository: on the hub, ``owner/name``.

    Returns:
        What was uploaded, in words.
    """
    names = [*json.loads((out / MANIFEST).read_bytes())[HASHES], MANIFEST, CARD_FILE]
    address = hub.push(out, names, repository)
    return f"pushed {len(names)} files to {repository}: {address}"


def _refuse_to_replace(out: Path, digests: Mapping[str, str]) -> None:
    """Raise ConfigError if a file that is to be written, with this sha256, would replace one that no export wrote.

    An export wrote what its ``export.json`` lists, damaged or not, and a card that is still as it was written. What has the very
    bytes that are to be written is in nobody's way: an export that was killed is done again.
    """
    try:
        before = json.loads((out / MANIFEST).read_bytes())
        written, card = set(before[HASHES]) | {MANIFEST}, before.get("card")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        written, card = set(), None
    for name, digest in digests.items():
        file = out / name
        if name in written or not (file.exists() or file.is_symlink()):
            continue
        present = sha256(file) if file.is_file() else None
        if present is None or present not in ((digest, card) if name == CARD_FILE else (digest,)):
            raise ConfigError(f"{file} is there, and no export wrote it; export to another folder (--out DIR), or move it away")


def _card(name: str, folder: Path, loaded: InferenceModel, files: Mapping[str, str], metrics: Path) -> str:
    source = loaded.backbone.architecture.get("source", {})
    licence = hub.licence(source["path"], source["revision"]) if source else None
    base = Path(source["path"]).name if source and Path(source["path"]).is_absolute() else source.get("path")
    head = {"library_name": "slotloop", "license": licence, "base_model": base}
    text = CARD.format(
        name=name,
        what=_what(loaded.model, base or f"the built-in {loaded.backbone.architecture['model']}"),
        facts="".join(f"| {key} | {value} |\n" for key, value in _facts(folder.name, loaded, base, licence).items()).rstrip(),
        prompt=rendering_of(loaded.backbone.vocabulary.rendering).example(loaded.backbone.vocabulary),
        results=_results(folder, metrics),
        files=markdown([["file", "sha256"], *([f"`{key}`", f"`{digest}`"] for key, digest in files.items())]).rstrip(),
    )
    front = "".join(f"{key}: {value}\n" for key, value in head.items() if value is not None)
    return f"---\n{front}---\n\n{text}"


def _what(model: Model, base: str) -> str:
    if not isinstance(model, RefinedLM):
        return f"{base[0].upper()}{base[1:]}, a masked-diffusion model, trained on with slotloop."
    core = model.refiner.architecture["core"]
    return (
        f"A refiner ({core}, {model.n_steps} recursion steps) over {base}, a masked-diffusion model: it improves the model's last "
        "hidden states step by step before its output layer reads them. Trained with slotloop."
    )


def _facts(phase: str, loaded: InferenceModel, base: str | None, licence: str | None) -> dict[str, str]:
    sizes = loaded.backbone.architecture
    facts = {"phase": phase, "backbone": f"{sizes['layers']} layers of width {sizes['dim']}, {sizes['vocab']:,} token ids"}
    facts["fingerprint of the backbone"] = f"`{loaded.backbone.fingerprint}`"
    if base is not None:
        source = sizes["source"]
        origin = f"`{base}`, revision {source['revision'] or 'none'}"
        trained = f"trained by the stage backbone from {origin}; in `{BASE}/`"
        facts["weights of the backbone"] = trained if loaded.backbone.files else f"{origin}; not part of this folder"
        facts |= {f"sha256 of its `{name}`": f"`{one['sha256']}`" for name, one in loaded.backbone.description["files"].items()}
        facts["licence of the backbone"] = licence or "not stated"
        facts |= {"code of the backbone": "its own; it runs if it is asked for"} if source["remote_code"] else {}
    if isinstance(loaded.model, RefinedLM):
        count = sum(parameter.numel() for parameter in loaded.model.refiner.parameters())
        facts["parameters of the refiner"] = f"{count:,}"
    facts["sequence"] = f"{loaded.backbone.vocabulary.sequence} tokens"
    return facts


def _results(folder: Path, metrics: Path) -> str:
    """The evaluation's metrics of the model and of the frozen backbone; nothing unless it looked at this very model."""
    if not metrics.exists():
        return ""
    evaluation, digest = Manifest(metrics, "evaluate", "evaluate").content, ModelFolder(folder, folder.name).manifest.digest
    models = evaluation["models"]
    same = [name for name, other in evaluation.get("evaluated", {}).items() if other == digest and name in models]
    if not same:
        return ""
    phase = folder.name if folder.name in same else same[0]
    names = [name for name in ("exact", "token_accuracy", "nll") if name in models[phase]]
    rows = [
        ["model", *names],
        *([name, *(cell(models[name][metric]) for metric in names)] for name in ("frozen", phase) if name in models),
    ]
    n = models[phase][names[0]]["n"]
    return f"\n## Results\n\n{evaluation['headline']}, on test ({n} examples), mean and 95 % interval:\n\n{markdown(rows)}"
