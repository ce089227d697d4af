"""What it is worth that threads sleep while they wait: `python -m bench.waiting [--steps 300] [--runs 3] [--json PATH] [--quick]`.

The same training run on two threads with OpenMP's waiting threads spinning for a while (its default) and asleep at once
(OMP_WAIT_POLICY=passive), with the processors to itself and beside one busy program. Same bytes each time. Seconds are wall time,
of the fastest run.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire

from pipeline.files import sha256, write_json
from pipeline.reporting.markdown import markdown
from pipeline.settings import params

ROOT = Path(__file__).resolve().parent.parent
BUSY = [sys.executable, "-c", "while True: pass"]
POLICIES: dict[str, dict[str, str]] = {"spinning": {}, "asleep": {"OMP_WAIT_POLICY": "passive"}}


def main(steps: int = 300, runs: int = 3, json: str = "", quick: bool = False) -> None:
    """Print a table; --quick: a tiny model, a few steps, one run."""
    steps, runs = (5, 1) if quick else (steps, runs)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "gin").symlink_to(ROOT / "gin")
        preset = "smoke" if quick else "sudoku4"
        params.with_bindings(ROOT / "params.yaml", Path(folder) / "params.yaml", {"common": {"THREADS": 2}}, preset)
        stage(Path(folder), "prepare", "--out=data/prepared")
        rows = [measured(Path(folder), steps, runs, busy) for busy in (False, True)]
    if json:
        write_json(Path(json), rows)
    print(markdown([list(rows[0]), *([f"{v:.2f}" if isinstance(v, float) else v for v in row.values()] for row in rows)]), end="")


def measured(folder: Path, steps: int, runs: int, busy: bool) -> dict[str, str | float]:
    """Seconds of both policies, run by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    other = subprocess.Popen(BUSY) if busy else None
    weights = set()
    try:
        for _ in range(runs):
            for name, policy in POLICIES.items():
                began = time.perf_counter()
                stage(folder, "backbone", f"BACKBONE_STEPS={steps}", f"--out={name}", **policy)
                seconds[name].append(time.perf_counter() - began)
                weights.add(sha256(folder / name / "model.safetensors"))
    finally:
        if other is not None:
            other.kill()
            other.wait()
    assert len(weights) == 1, "how threads wait has changed a result"
    found = {name: min(values) for name, values in seconds.items()}
    where = "one busy program" if busy else "nothing"
    return {"beside": where, **{f"{n}, s": v for n, v in found.items()}, "asleep_vs_spinning": found["asleep"] / found["spinning"]}


def stage(folder: Path, *arguments: str, **variables: str) -> None:
    """Run a stage in a workspace."""
    mine = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**mine, "PYTHONPATH": str(ROOT), "SLOTLOOP_TRACKING": "off", **variables}
    subprocess.run([sys.executable, "-m", "stages", *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    fire.Fire(main)
