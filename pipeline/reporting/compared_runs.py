"""Runs that are compared, each from a folder or from a commit: what was measured, the settings, the curves and what they cost."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.diagnosis import recorded
from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.manifests import DIGEST, Manifest
from pipeline.models.model_folder import CURVES, DESCRIPTION, METRICS, PHASES
from pipeline.reporting import revisions
from pipeline.reporting.figures import Curves
from pipeline.settings import params
from pipeline.tracking import run_log
from pipeline.training import curves

EVALUATION, TRACE, SETTINGS = Path("outputs/evaluate"), "trace.json", "config.gin"
PLACES = {"prepare": "data/prepared", "backbone": "data/backbone", "extract": "data/shards"}  # of stages not in outputs/
PARAMS, RECORDS = "params.yaml", ".tracking"


@dataclass(frozen=True)
class Run:
    """A run that was evaluated.

    Attributes:
        name: that it was asked for by; of a folder the last part of it, where that is enough.
        commit: that it was read from; "" = a folder.
        preset: that params.yaml names; "" = unknown.
        evaluation: what evaluate measured.
        trace: answers of some examples, step by step; None = lost.
        settings: (stage, setting) -> value, of all that was in effect.
        curves: of each evaluated phase that took steps.
        trained: ``metrics.json`` of each evaluated phase that took steps.
        seconds: that stages took, as the records beside a folder, or for a commit those of this one, say; of those with a record.
        remarks: what is missing, a line each.
    """

    name: str
    commit: str
    preset: str
    evaluation: Manifest
    trace: Mapping[str, Any] | None = None
    settings: Mapping[tuple[str, str], str] = field(default_factory=dict)
    curves: Mapping[str, Curves] = field(default_factory=dict)
    trained: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def headline(self) -> str:
        """Name the measure that its models are compared by."""
        return str(self.evaluation.content["headline"])

    @property
    def models(self) -> Mapping[str, Any]:
        """Look up what evaluate measured of each model."""
        models: Mapping[str, Any] = self.evaluation.content["models"]
        return models


def read_runs(names: Sequence[str]) -> list[Run]:
    """Read runs by name: a folder in which stages ran, a git revision or an experiment.

    Raises:
        DataError: a name is neither, is there twice, or evaluate left nothing there; or there are fewer than two.
    """
    if len(names) < 2:
        raise DataError(f"compare needs two runs at least, got {len(names)}: revisions, experiments or folders (. is this one)")
    if "" in names:
        raise DataError("the name of a run is empty; name a revision, an experiment or a folder")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"'{twice[0]}' is given twice; name each run once")
    runs = [_folder(name) if (Path(name) / EVALUATION / METRICS).is_file() else _revision(name) for name in names]
    labels = [run.name if run.commit else Path(run.name).resolve().name for run in runs]
    return [replace(run, name=label) for run, label in zip(runs, labels, strict=True)] if len(set(labels)) == len(runs) else runs


def phase_place(phase: str) -> str:
    """Name the folder of a phase that the pipeline runs, relative to the run's."""
    return PLACES.get(phase, f"outputs/{PHASES[phase]}")


def _revision(name: str) -> Run:
    folder = Path(name)
    if folder.is_dir() and (folder / PARAMS).is_file():
        raise DataError(f"{folder / EVALUATION / METRICS} does not exist; run dvc repro evaluate in that folder")
    commit = revisions.commit_of(name)
    phases = [f"{phase_place(phase)}/{file}" for phase in PHASES for file in (METRICS, DESCRIPTION, CURVES)]
    settings = [f"{place}/{SETTINGS}" for place in _stages().values()]
    with TemporaryDirectory() as copied:
        measured = [f"{EVALUATION}/{file}" for file in (METRICS, TRACE)]
        lost = revisions.copy(commit, [PARAMS, *measured, *phases, *settings], Path(copied))
        if not (Path(copied) / EVALUATION / METRICS).is_file():
            what = f"{name} (commit {commit[:7]}) has no {EVALUATION / METRICS}"
            raise DataError(f"{what}: no evaluation was committed with it; name another revision, or a folder")
        remarks = [f"{len(lost)} files are neither in DVC's cache nor at a remote: {', '.join(lost)}"] if lost else []
        return _read(Path(copied), name, commit, remarks)


def _folder(name: str) -> Run:
    return _read(Path(name), name, "", [])


def _stages() -> dict[str, str]:
    """Folder of every stage that leaves settings beside what it made."""
    return {stage: PLACES.get(stage, f"outputs/{stage}") for stage in params.STAGES if stage != "report"}


def _read(folder: Path, name: str, commit: str, remarks: Sequence[str]) -> Run:
    evaluation = Manifest(folder / EVALUATION / METRICS, "evaluate", "evaluate")
    if not evaluation.content.get("models") or "headline" not in evaluation.content:
        raise DataError(f"{name}: {EVALUATION / METRICS} compares no models; run dvc repro evaluate")
    said = list(remarks)
    traced = (folder / EVALUATION / TRACE).is_file()
    of_phases = {}
    for phase in PHASES:
        place = folder / phase_place(phase)
        if not (place / METRICS).is_file() or not (metrics := read_json(place / METRICS, phase)).get("steps"):
            continue
        if _is_evaluated(evaluation, phase, place):
            of_phases[phase] = (metrics, place / CURVES)
        else:
            said.append(f"{phase_place(phase)} is not the model that was evaluated: its curves are left out")
    return Run(
        name, commit, _preset(folder / PARAMS), evaluation,
        trace=evaluation.json(TRACE) if traced else None,
        settings=dict(_settings(folder)),
        curves={phase: curves.read(file) for phase, (_, file) in of_phases.items() if file.is_file()},
        trained={phase: metrics for phase, (metrics, _) in of_phases.items()},
        seconds=dict(_seconds(folder, run_log.root() if commit else folder / RECORDS)), remarks=said,
    )  # fmt: skip


def _is_evaluated(evaluation: Manifest, phase: str, place: Path) -> bool:
    """Whether a phase's model is the one that was evaluated; of a commit whose model is lost that is taken for granted."""
    if not (place / DESCRIPTION).is_file():
        return True
    evaluated = evaluation.content["evaluated"].get("frozen" if phase == "backbone" else phase)
    return evaluated == read_json(place / DESCRIPTION, phase).get(DIGEST)


def _preset(file: Path) -> str:
    return params.read(file, params.SECTIONS).preset if file.is_file() else ""


def _settings(folder: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """What the files beside the stages' outputs bind, a line a setting."""
    for stage, place in _stages().items():
        if (file := folder / place / SETTINGS).is_file():
            for name, value in recorded.bindings(file).items():
                yield (stage, name.removeprefix(f"{stage}.")), value


def _seconds(folder: Path, place_of_records: Path) -> Iterator[tuple[str, float]]:
    """From begin to end of each stage whose record has the same settings and results; the last of several."""
    records = [record for record in run_log.all_records(place_of_records)[0] if record.completed()]
    for stage, place in _stages().items():
        settings = folder / place / SETTINGS
        digest = hashlib.sha256(settings.read_bytes()).hexdigest() if settings.is_file() else ""
        for record in reversed(records):
            if record.facts["written"] == digest and _same(record.files / METRICS, folder / place / METRICS):
                yield stage, (record.folder / "end.json").stat().st_mtime - record.facts["began"]
                break


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same, or neither is there."""
    return one.read_bytes() == other.read_bytes() if one.is_file() and other.is_file() else one.is_file() == other.is_file()
