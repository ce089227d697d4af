"""Ablations: one phase trained in many variants over several seeds, each for the same compute, side by side.

Every seed has its own workspace with its own data, backbone and shards; a variant is a warmup there with bindings over the user's
settings, as one would type them. Jobs run side by side, one thread each, each a process of its own; a job that is finished is
never run again, one that was interrupted continues.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.command_line import SECTIONS
from pipeline.errors import ConfigError, UserError
from pipeline.files import read_json, sha256, write_atomic, write_json
from pipeline.machine import snapshots
from pipeline.progress import Progress
from pipeline.reporting import ablation_table
from pipeline.reporting.ablation_table import BASE, folder_name
from pipeline.settings import config, dependencies, params
from pipeline.text.raw_files import RAW_VARIABLE, raw_folder

ROOT = Path(__file__).resolve().parent.parent
NOTHING_ELSE = ("evaluate.run.decodes={}", "evaluate.run.halts={}")  # of an evaluation: the measures are what is compared
RESOLVING = Lock()  # gin's configuration is the process's


def ablate(
    out: Path, variants: Mapping[str, Sequence[str]], scratch: Mapping[str, Sequence[str]], seeds: Sequence[int], processes: int
) -> str:
    """Run what is missing and write metrics.json, table.md and ablations.png into ``out``; returns the table.

    Args:
        out: of results and workspaces.
        variants: name -> bindings over warmup's settings. "default" (none) is always there, and what others are compared with.
        scratch: name -> bindings over the backbone's settings: models of their own, trained for backbone's and warmup's compute.
        seeds: at least two.
        processes: jobs at a time.

    Raises:
        ConfigError: seeds that give no interval, or two names that give one folder.
        UserError: a job failed; the message is the job's.
    """
    names = [BASE, *variants, *scratch]
    _check(names, seeds)
    places = [workspace(out, seed) for seed in seeds]
    jobs = len(places) * (2 + len(variants) + len(scratch))
    with Progress("ablate", jobs, "run") as bar, ThreadPoolExecutor(processes) as pool:

        def together(*work: Any) -> None:
            for finished in [pool.submit(job) for job in work]:
                bar.line(finished.result())
                bar.advance()

        together(*(partial(_prepared, place) for place in places))
        together(*(partial(_variant, place, BASE, ()) for place in places))
        together(
            *(partial(_variant, place, name, bindings) for name, bindings in variants.items() for place in places),
            *(partial(_from_scratch, place, name, bindings) for name, bindings in scratch.items() for place in places),
        )
    rows, points = ablation_table.rows(places, names), ablation_table.few_passes(places, names)
    table = ablation_table.table(rows, points, len(seeds))
    write_json(out / "metrics.json", {"seeds": list(seeds), "rows": rows, **({"few_passes": points} if points else {})})
    write_atomic(out / "table.md", table.encode())
    from pipeline.reporting import figures  # brings matplotlib, half a second that only the end should pay

    figures.ablations(rows, out / "ablations.png")
    return table


def _check(names: Sequence[str], seeds: Sequence[int]) -> None:
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"ablate.run.seeds needs at least two different seeds for an interval, got {list(seeds)}")
    for place, name in enumerate(names):
        if same := [other for other in names[:place] if folder_name(other) == folder_name(name)]:
            raise ConfigError(f"ablate names a variant twice: '{same[0]}' and '{name}' would share the folder {folder_name(name)}")


def workspace(out: Path, seed: int, preset: str = "", seeded: Sequence[str] = ("common",)) -> Path:
    """Make a folder with the user's settings, but for the threads of a job, the seed of some sections and, if given, the preset."""
    place = out / f"seed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    bindings: dict[str, dict[str, int]] = {"common": {"THREADS": 1}}
    for section in seeded:
        bindings[section] = {**bindings.get(section, {}), "SEED": seed}
    params.with_bindings(Path("params.yaml"), place / "params.yaml", bindings, preset)
    if not (place / "gin").exists():
        (place / "gin").symlink_to(Path("gin").resolve())
    return place


def run_stage(place: Path, stage: str, *arguments: str) -> None:
    """Run a stage in a workspace, unless it was run with the very same settings, inputs and code, and its result is there."""
    command = [sys.executable, "-m", "stages", stage, *arguments]
    alone = {"SLOTLOOP_PROCESSES": "1", "SLOTLOOP_SLURM": "", "SLOTLOOP_TORCHRUN": ""}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **alone, RAW_VARIABLE: str(raw_folder().resolve())}
    *bindings, out = arguments
    text, folder = settings(place, stage, bindings), place / out.removeprefix("--out=")
    done = folder / "done"
    if text and done.is_file() and done.read_text() == _identity(stage, text, place, folder):
        return
    done.unlink(missing_ok=True)
    completed = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"status {completed.returncode}"]
        raise UserError(f"ablate: {stage} in {place} failed: {lines[-1].removeprefix('error: ')}")
    write_atomic(done, _identity(stage, text, place, folder).encode())


def settings(place: Path, stage: str, bindings: Sequence[str]) -> str:
    """Resolve the settings of a stage in a workspace; "" if they are refused, which the stage itself will say."""
    with RESOLVING:
        try:
            return config.resolve(stage, params.read(place / "params.yaml", SECTIONS), bindings, place).text
        except ConfigError:
            return ""


def _identity(stage: str, text: str, place: Path, folder: Path) -> str:
    """Of a finished job: its settings and code, and what it read and wrote."""
    read = [raw_folder() / name for name in sorted(set(re.findall(r"'([\w./-]+)'", text)))]
    files = [file for file in (*read, *sorted(folder.glob("*.json"))) if file.is_file()]
    return "".join([snapshots.key(text, dependencies.code_listing(stage, text, ROOT), place), *(sha256(file) for file in files)])


def _prepared(place: Path) -> str:
    for stage, folder in (("prepare", "data/prepared"), ("backbone", "data/backbone"), ("extract", "data/shards")):
        run_stage(place, stage, f"--out={folder}")
    return f"{place.name}: data, backbone and shards"


def _variant(place: Path, name: str, bindings: Sequence[str]) -> str:
    budget = [] if name == BASE else [f"loop.fit.budget={_flops(place / 'outputs' / BASE)}"]
    folder = f"outputs/{folder_name(name)}"
    run_stage(place, "warmup", *bindings, *budget, f"--out={folder}")
    model = f"evaluate.run.models={{'{folder_name(name)}': '{folder}'}}"
    run_stage(place, "evaluate", model, *NOTHING_ELSE, f"--out={folder}-evaluated")
    return f"{place.name}: {name}"


def _from_scratch(place: Path, name: str, bindings: Sequence[str]) -> str:
    budget = _flops(place / "data/backbone") + _flops(place / "outputs" / BASE)
    folder = f"outputs/{folder_name(name)}"
    run_stage(place, "backbone", *bindings, f"loop.fit.budget={budget}", f"--out={folder}")
    of_it = (f"evaluate.run.backbone='{folder}'", "evaluate.run.models={}")
    run_stage(place, "evaluate", *of_it, *NOTHING_ELSE, f"--out={folder}-evaluated")
    return f"{place.name}: {name}"


def _flops(folder: Path) -> int:
    return int(read_json(folder / "metrics.json", "ablate")["flops"])
