"""What runs have left in a workspace, read once and without torch, also while a run goes on: the last line may be half written."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.diagnosis.training_run import Evaluation, Run, Validation
from pipeline.errors import DataError

ORDER = ("backbone", "warmup", "joint", "finetune", "controls")
Settings = Mapping[str, str]  # values in effect, as gin source


def columns(file: Path) -> dict[str, list[float]]:
    """Read the whole rows of a file of curves; nothing of one that is not there or has only begun.

    Raises:
        DataError: a row does not fit the header.
    """
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    names = lines[0].strip().split(",") if lines else []
    try:
        rows = [tuple(map(float, line.split(","))) for line in lines[1:] if line.endswith("\n")]
        return {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)} if rows else {}
    except ValueError as error:
        raise DataError(f"{file} is not what a training run writes ({error}); run that phase again") from None


def run_at(folder: Path, name: str, shards: Path) -> Run:
    """Read what a phase has left.

    Args:
        folder: of the phase.
        name: of the phase, "controls/backbone" for example.
        shards: folder of the states that extract stored.

    Raises:
        DataError: a file is damaged.
    """
    curves, settings, stage = columns(folder / "curves.csv"), _settings(folder), name.partition("/")[0]
    loop = _loop(settings, stage, name.rpartition("/")[2])
    known: dict[str, Any] = {"clip": float(settings.get(f"{loop}.clip", 0)), "unit": states_size(folder)}
    if not goes_on(folder):
        uses = _uses(folder, settings, stage, loop, len(curves.get("loss", ())), shards)
        return finished(name, curves, _json(folder / "metrics.json"), uses=uses, **known)
    rows = columns(folder / "validation.csv")
    by_step = zip(*(values for name, values in rows.items() if name.startswith("loss/step_")), strict=True)
    validations = [Validation(int(step), losses) for step, losses in zip(rows.get("step", ()), by_step, strict=True)]
    planned = settings.get(f"{loop}.steps", "")
    return Run(name, curves, validations, int(planned) if planned.isdigit() else 0, ended=False, **known)


def finished(name: str, curves: Mapping[str, Sequence[float]], metrics: Mapping[str, Any], **known: Any) -> Run:
    """Make a run of the curves and the metrics that a phase has left; ``known``: attributes that its settings and weights tell."""
    validations = [Validation(entry["step"], entry.get("loss_by_step", [entry["loss"]])) for entry in metrics.get("validation", ())]
    trials = [trial["rate"] for trial in metrics.get("rates", ())]
    return Run(name, curves, validations, trials=(trials, metrics.get("rate", 1.0)), **known)


def workspace(folder: Path) -> tuple[dict[str, Run], Evaluation]:
    """Read every phase of a workspace that has taken steps, and its evaluation; or the phases of a stage's folder.

    Raises:
        DataError: there is no run, or a file is damaged.
    """
    ways = (folder, *folder.resolve().parents)
    shards = next((way / "data/shards" for way in ways if (way / "data/shards").is_dir()), folder / "data/shards")
    runs = {name: run for name, place in places(folder).items() if (run := run_at(place, name, shards)).steps}
    evaluation = folder / "outputs/evaluate/metrics.json"
    return runs, _json(evaluation) if evaluation.is_file() else {}


def places(folder: Path) -> dict[str, Path]:
    """Name the phases of a workspace, or of a stage's or a phase's own folder, with their folders.

    Raises:
        DataError: there is none.
    """
    whole = folder.resolve()
    if (folder / "curves.csv").is_file():
        within = [parent for parent in whole.parents if parent.name == "controls"]
        own = whole.name if whole.name in ORDER else whole.parent.name  # runs/joint/<digest>
        return {f"controls/{whole.relative_to(within[0]).as_posix()}" if within else own: folder}
    if named := dict(_phases(folder)) or below(folder, whole.name):
        return named
    raise DataError(f"{folder} holds no run (no curves.csv in it or below); name a workspace or the folder of a phase")


def goes_on(folder: Path) -> bool:
    """Whether a phase has begun and not come to its end."""
    return (folder / "unfinished").exists() or not (folder / "metrics.json").is_file()


def below(folder: Path, stage: str) -> dict[str, Path]:
    """Name the phases within a stage's folder: by the stage, and by the folders in it."""
    files = sorted(folder.rglob("curves.csv"))
    return {"/".join((stage, *file.parent.relative_to(folder).parts)): file.parent for file in files}


def _phases(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name every phase's folder of a workspace, in the pipeline's order."""
    outputs = folder / "outputs"
    files = [*(folder / "data/backbone").glob("curves.csv"), *outputs.rglob("curves.csv")]
    named = {
        file.parent.name if outputs not in file.parents else file.parent.relative_to(outputs).as_posix(): file for file in files
    }
    for name in sorted(named, key=in_order):
        yield name, named[name].parent


def in_order(name: str) -> tuple[int, str]:
    """Make the key that sorts phases as the pipeline runs them."""
    first = name.partition("/")[0]
    return (ORDER.index(first) if first in ORDER else len(ORDER), name)


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); run its stage again") from None


def _settings(folder: Path) -> Settings:
    """Values in effect, from the phase's folder or from that of its stage; of one that goes on from the record of its run."""
    ways = (folder, folder.resolve(), *folder.resolve().parents)
    file = next((way / "config.gin" for way in ways[1:4] if (way / "config.gin").is_file() and not goes_on(folder)), None)
    if file is None:
        records = [record for way in ways for record in (way / ".tracking").glob("*/record.json")]
        facts = [fact for fact in map(_facts, records) if Path(fact.get("out", "")) in ways[1:4]]
        return dict(max(facts, key=lambda fact: fact["began"])["settings"]) if facts else {}
    return bindings(file)


def bindings(file: Path) -> Settings:
    """Read what a phase's config.gin binds, by the dotted names of the settings."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in lines) if equals}


def _facts(record: Path) -> dict[str, Any]:
    """What a run's record says; nothing of a damaged one, which tracking names."""
    with contextlib.suppress(DataError, OSError):
        return _json(record)
    return {}


def _loop(settings: Settings, stage: str, control: str) -> str:
    """Name the training loop that a phase took, with its scope."""
    own = settings.get(f"{stage}.run.fit_{control}", "")
    return (own if own.startswith("@") else settings.get(f"{stage}.run.fit", "@loop.fit")).removeprefix("@")


def states_size(folder: Path) -> float:
    """Read the root mean square of the states that a model's refiner changes; 0 of a model that has none, or is not saved yet."""
    try:
        with safe_open(folder / "model.safetensors", "np") as weights:
            return float(weights.get_tensor("refiner.hidden_rms")) if "refiner.hidden_rms" in weights.keys() else 0.0  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0.0


def _uses(folder: Path, settings: Settings, stage: str, loop: str, steps: int, shards: Path) -> float:
    """How often a finished phase that read stored states has seen each mask; 0 of another one."""
    batch, index, model = settings.get(f"{stage}.run.batch_size", ""), shards / "index.json", folder / "model.json"
    if not (batch.isdigit() and index.is_file() and model.is_file()) or "extract" not in _json(model).get("inputs", {}):
        return 0.0
    rows = sum(shard["rows"] for shard in _json(index)["shards"] if shard["split"] == "train")
    return steps * int(batch) * int(settings.get(f"{loop}.accumulation", 1)) / max(1, rows)
