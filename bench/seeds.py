"""The headline over several seeds: `python -m bench.seeds [--preset NAME] [--above] [--out FOLDER] [--quick] [--json F]`.

Each seed is a workspace as `python -m stages ablate` makes them, run through all stages up to evaluate. Prints mean and 95 %
interval over seeds (Student's t) of every model and of the paired differences. With --above the seeds share data, backbone and
shards, those of the first: a pretrained model is one, and what varies is what is trained above it (weights, order, draws).
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fire

from components.inference.metrics import over_seeds
from pipeline import ablation
from pipeline.evaluation.assessment import PAIRS
from pipeline.files import read_json, write_json
from pipeline.reporting.markdown import cell, markdown

ROOT = Path(__file__).resolve().parent.parent
BELOW = {"prepare": "data/prepared", "backbone": "data/backbone", "extract": "data/shards"}
ABOVE = {stage: f"outputs/{stage}" for stage in ("warmup", "joint", "finetune", "controls")}


def main(
    seeds: int = 3,
    preset: str = "sudoku4",
    above: bool = False,
    quick: bool = False,
    out: str = "",
    json: str = "",
    processes: int = 2,
) -> None:
    """Run SEEDS seeds of PRESET, PROCESSES at a time, and print the headline; --quick: the smoke preset, two seeds.

    --out keeps the runs, and finished ones are not run again.
    """
    if quick:
        seeds, preset = 2, "smoke"
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(processes) as pool:
        folder = Path(out).resolve() if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.chdir(ROOT))
        seeded = tuple(ABOVE) if above else ("common",)
        places = [ablation.workspace(folder, seed, preset, seeded) for seed in range(seeds)]
        if above:
            share(places)
        runs = list(pool.map(evaluate, places))
    rows = table(runs)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    print(f"{preset}, {runs[0]['headline']}, {seeds} seeds, commit {commit[:9]}\n")
    print(markdown([["model", "metric", "mean [95 % over seeds]"], *([r["model"], r["metric"], cell(r)] for r in rows)]))
    if json:
        write_json(Path(json), rows)


def share(places: Sequence[Path]) -> None:
    """Run the stages below the refiner in the first workspace, and give their folders to the others."""
    first, *others = places
    run(first, BELOW)
    for place in others:
        if not (place / "data").is_symlink():
            (place / "data").symlink_to(first.resolve() / "data")


def evaluate(place: Path) -> dict[str, Any]:
    """Metrics of one seed's workspace, all stages run."""
    if not (place / "data").is_symlink():
        run(place, BELOW)
    run(place, {**ABOVE, "evaluate": "outputs/evaluate"})
    return read_json(place / "outputs/evaluate/metrics.json", "evaluate")


def run(place: Path, stages: Mapping[str, str]) -> None:
    """Run stages of a workspace in their order."""
    for stage, folder in stages.items():
        ablation.run_stage(place, stage, f"--out={folder}")


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model and each pair of models, on both metrics, over seeds."""
    models, by_seed = list(runs[0]["models"]), [run["models"] for run in runs]
    rows = [
        {"model": name, "metric": metric, **over_seeds([run[name][metric]["mean"] for run in by_seed])}
        for name in models
        for metric in ("exact", "nll")
    ]
    return rows + [
        {
            "model": f"{a} - {b}",
            "metric": metric,
            **over_seeds([run[a][metric]["mean"] - run[b][metric]["mean"] for run in by_seed]),
        }
        for a, b in PAIRS
        if a in models and b in models
        for metric in ("exact", "nll")
    ]


if __name__ == "__main__":
    fire.Fire(main)
