"""What the declarative layer costs: `python -m bench.overhead [--quick] [--json PATH]`.

Settings: seconds of `configure`, of a refused mistake and of a `dvc repro` that has nothing to do, beside `import torch`.
Logging: microseconds a step that curves.csv costs the training process. Tracking: a warmup of the smoke preset with tracking off,
without an account, and against a server that refuses or never answers. Medians of `--runs` runs in turn; ratios within one run.
"""

import json as js
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire
import torch

from pipeline.reporting.markdown import markdown
from pipeline.training.curves import Curves

ROOT = Path(__file__).resolve().parent.parent
STEPS, COLUMNS, EVERY = 2000, 15, 50  # rows of a curve, values of a row, rows between host syncs


def seconds(folder: Path, *command: str, **environment: str) -> float:
    """Wall time of a command; `python` is this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "SLOTLOOP_TRACKING": "off", **environment}
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def workspace(folder: Path) -> Path:
    """A folder in which stages run by hand, with everything that warmup needs."""
    folder.mkdir()
    (folder / "gin").symlink_to(ROOT / "gin")
    (folder / "params.yaml").write_text("preset: smoke\n")
    for stage in ("prepare", "backbone", "extract"):
        seconds(folder, "python", "-m", "stages", stage, DVC_STAGE=stage)
    return folder


def clone(folder: Path) -> Path:
    """A clone after `dvc repro`."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("preset: sudoku4", "preset: smoke"))
    seconds(folder, "dvc", "repro")
    return folder


def logging(folder: Path) -> float:
    """Seconds a step of recording and writing ``COLUMNS`` 0-d tensors; the median over flushes."""
    curves, values = Curves(folder / "curves.csv"), {f"loss/step_{i}": torch.rand(()) for i in range(COLUMNS)}
    taken = []
    for _ in range(STEPS // EVERY):
        began = time.perf_counter()
        for step in range(EVERY):
            curves.record(step, {**values})
        curves.flush()
        taken.append((time.perf_counter() - began) / EVERY)
    return statistics.median(taken)


def warmup(folder: Path, **environment: str) -> float:
    """Seconds of one run of the stage."""
    shutil.rmtree(folder / ".tracking", ignore_errors=True)
    return seconds(folder, "python", "-m", "stages", "warmup", **environment)


def main(runs: int = 5, quick: bool = False, json: str = "") -> None:
    """Print a table; --quick runs everything once, without DVC."""
    runs = 1 if quick else runs
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as silent:
        folder = Path(name)
        bare, whole = workspace(folder / "bare"), folder / "clone" if quick else clone(folder / "clone")
        mistake = workspace_with_a_mistake(folder / "mistake")
        keys = {"CLEARML_API_ACCESS_KEY": "a", "CLEARML_API_SECRET_KEY": "b", "SLOTLOOP_TRACKING": "on"}
        hangs, refuses = (f"http://127.0.0.1:{port}" for port in (silent.getsockname()[1], 9))
        measured = {
            "import torch": lambda: seconds(bare, "python", "-c", "import torch"),
            "configure": lambda: seconds(bare, "python", "-m", "stages", "configure"),
            "a mistake refused": lambda: seconds(mistake, "python", "-m", "stages", "configure"),
            "dvc repro, nothing to do": lambda: seconds(whole, "dvc", "repro"),
            "warmup, tracking off": lambda: warmup(bare),
            "warmup, no account": lambda: warmup(bare, SLOTLOOP_TRACKING="on", CLEARML_CONFIG_FILE=os.devnull),
            "warmup, server refuses": lambda: warmup(bare, CLEARML_API_HOST=refuses, **keys),
            "warmup, server never answers": lambda: warmup(bare, CLEARML_API_HOST=hangs, **keys),
            "logging a step": lambda: logging(folder),
        }
        if quick:
            del measured["dvc repro, nothing to do"]
        taken: dict[str, list[float]] = {what: [] for what in measured}
        for _ in range(runs):
            for what, measure in measured.items():
                taken[what].append(measure())
    base = {"warmup": "warmup, tracking off"}
    rows = []
    for what, values in taken.items():
        beside = base.get(what.split(",")[0], "import torch")
        ratio = statistics.median(a / b for a, b in zip(values, taken[beside], strict=True))
        rows.append({"what": what, "seconds": statistics.median(values), f"seconds_vs_{beside}": ratio})
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")
    table = [["what", "seconds", "times", "of"]]
    for row in rows:
        beside, ratio = list(row.items())[-1]
        table.append([row["what"], f"{row['seconds']:.6f}", f"{ratio:.2f}", beside.removeprefix("seconds_vs_")])
    print(markdown(table), end="")


def workspace_with_a_mistake(folder: Path) -> Path:
    """A folder whose params.yaml holds a typo."""
    folder.mkdir()
    (folder / "gin").symlink_to(ROOT / "gin")
    (folder / "params.yaml").write_text("preset: smoke\njoint: {bindings: {loop: {fit: {step: 9}}}}\n")
    return folder


if __name__ == "__main__":
    fire.Fire(main)
