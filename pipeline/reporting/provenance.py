"""Where a report's numbers come from: settings over the preset, what of the machine decides scores, and how to get them again."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.manifests import Manifest
from pipeline.settings.params import Params

Rows = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Provenance:
    """What says where a report's numbers come from.

    Attributes:
        preset: that was run; "" = unknown.
        settings: over the preset: section, setting, value.
        machine: what of it decides scores, name and value.
        lineage: names and digests of what was evaluated.
        commands: that give the numbers again.
    """

    preset: str
    settings: Rows
    machine: Rows
    lineage: Rows
    commands: str


def provenance(evaluation: Manifest, runtime: Mapping[str, Any], params: Params | None, sections: Iterable[str]) -> Provenance:
    """Gather where an evaluation's numbers come from.

    Args:
        evaluation: its manifest.
        runtime: device, precision and threads, by the settings.
        params: params.yaml; None = there is none.
        sections: of params.yaml that the pipeline reads, in order.
    """
    preset = "" if params is None else params.preset
    content = evaluation.content
    digests = {"evaluation": evaluation.digest, **content["evaluated"], **content["inputs"]}
    return Provenance(
        preset,
        settings_over_preset(params, sections),
        machine(runtime),
        [(name, digest[:12]) for name, digest in digests.items()],
        commands(evaluation.folder, evaluation.digest, preset),
    )


def settings_over_preset(params: Params | None, sections: Iterable[str]) -> Rows:
    """List what params.yaml sets over its preset: section, setting, value; gin files as settings named "gin".

    Args:
        params: params.yaml; None = there is none.
        sections: of the pipeline, in order.
    """
    rows: list[tuple[str, ...]] = []
    for section in sections if params is not None else ():
        assert params is not None
        rows += [(section, "gin", file) for _, file in params.files(section)]
        rows += [(section, binding.key, binding.text) for binding in params.bindings(section, lambda path: False)]
    return rows


def machine(runtime: Mapping[str, Any]) -> Rows:
    """List what of the machine decides scores in their last digits: name and value.

    Args:
        runtime: device, precision and threads, by the settings.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    return [*((name, str(value)) for name, value in runtime.items()), ("torch", torch.__version__), ("Python", python)]


def commands(folder: Path, digest: str, preset: str) -> str:
    """Write the commands that find the commit of an evaluation and run it again.

    Args:
        folder: of the evaluation; an absolute path is shown by its name.
        digest: of its manifest.
        preset: that was run; "" = unknown.
    """
    shown = folder.name if folder.is_absolute() else folder.as_posix()
    run = f"dvc exp run -S preset={preset}" if preset else "dvc repro"
    return (
        f"git log --oneline -S {digest} -- {shown}/metrics.json   # the commit of these numbers, once they are committed\n"
        "git checkout COMMIT\n"
        "make setup && source .venv/bin/activate\n"
        f"{run}   # with the settings over the preset, if any are listed"
    )
