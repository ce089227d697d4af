"""Golden losses of the smoke preset: `make golden` writes them again, for a commit that changes results and says why."""

import csv
import json
import tempfile
from pathlib import Path

from tests.conftest import ROOT, run_stages, workspace

GOLDEN = ROOT / "tests" / "golden" / "smoke.json"
PHASES = ("data/backbone", "outputs/warmup", "outputs/joint", "outputs/controls/backbone", "outputs/controls/warmup")
TRAINED = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls")


def losses(folder: Path) -> dict[str, list[float]]:
    """Training loss of every optimizer step, by phase."""
    curves = {}
    for phase in PHASES:
        with (folder / phase / "curves.csv").open() as file:
            curves[phase] = [float(row["loss"]) for row in csv.DictReader(file)]
    return curves


def write(folder: Path) -> None:
    """Write the losses of a finished run, eight decimals each."""
    rounded = {phase: [round(loss, 8) for loss in curve] for phase, curve in losses(folder).items()}
    GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        run = workspace(Path(temporary) / "run", "smoke")
        run_stages(run, TRAINED)
        write(run)
