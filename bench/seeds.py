"""The headline over several seeds: `python -m bench.seeds --seeds 3 [--preset NAME] [--quick] [--json PATH]`.

Each seed is a fresh clone of the committed state in a temporary folder, run through `dvc repro evaluate`. Prints mean and 95 %
interval over seeds (Student's t) of every model and of the paired differences.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fire

from components.inference.metrics import over_seeds
from pipeline.reporting.markdown import cell, markdown
from pipeline.settings import params

ROOT = Path(__file__).resolve().parent.parent
PAIRS = (("warmup", "frozen"), ("joint", "frozen"), ("joint", "warmup"), ("joint", "control_warmup"), ("joint", "control_backbone"))


def evaluate(seed: int, preset: str, folder: Path, commit: str) -> dict:
    """Metrics of one seed."""
    clone = folder / f"seed-{seed}"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
    params.with_common(clone / "params.yaml", clone / "params.yaml", {"SEED": seed}, preset)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "evaluate"]
    subprocess.run(command, cwd=clone, env={**os.environ, "PATH": path}, check=True, stdout=sys.stderr)
    return json.loads((clone / "outputs/evaluate/metrics.json").read_text())


def main(seeds: int = 3, preset: str = "sudoku4", quick: bool = False, json: str = "") -> None:
    """Run SEEDS seeds (2 to 10) of PRESET and print the headline; --quick runs the smoke preset on two seeds."""
    if quick:
        seeds, preset = 2, "smoke"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        runs = [evaluate(seed, preset, Path(folder), commit) for seed in range(seeds)]
    models, by_seed = list(runs[0]["models"]), [run["models"] for run in runs]
    rows = [
        {"model": name, "metric": metric, **over_seeds([run[name][metric]["mean"] for run in by_seed])}
        for name in models
        for metric in ("exact", "nll")
    ]
    rows += [
        {
            "model": f"{a} - {b}",
            "metric": metric,
            **over_seeds([run[a][metric]["mean"] - run[b][metric]["mean"] for run in by_seed]),
        }
        for a, b in PAIRS
        for metric in ("exact", "nll")
    ]
    print(f"{preset}, {runs[0]['headline']}, {seeds} seeds, commit {commit[:9]}\n")
    print(markdown([["model", "metric", "mean [95 % over seeds]"], *([r["model"], r["metric"], cell(r)] for r in rows)]))
    if json:
        write(Path(json), rows)


def write(path: Path, rows: list[dict]) -> None:
    """Write the rows as JSON."""
    path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
