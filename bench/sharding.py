"""Memory of a process that trains a backbone of 24 layers with another one.

`python -m bench.sharding [--against PATH] [--quick] [--json PATH]`. The stage `backbone` in two processes: all that is trained in
each, and shared out (`sharding.fully_sharded`), beside the checkout at PATH, if one is given, whose interpreter is its own `.venv`
if it has one. Peaks are the resident memory of the larger process, imports included; ratios are of one run of this script.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fire

from bench.checkout import ROOT, run
from pipeline.files import write_json
from pipeline.reporting.markdown import markdown

SIZES = "ACCUMULATION: 2, DIM: {dim}, LAYERS: 24, HEADS: 8, BACKBONE_STEPS: 3, BACKBONE_BATCH: 4"
SETTINGS = f"preset: smoke\ncommon: {{{{bindings: {{{{{SIZES}}}}}}}}}\n"
SHARED = "loop.fit.sharding=@sharding.fully_sharded"


def peak(checkout: Path, dim: int, *overrides: str) -> int:
    """Train in two processes on the code of a checkout; returns the larger one's peak in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(checkout / "gin", Path(folder, "gin"))
        Path(folder, "params.yaml").write_text(SETTINGS.format(dim=dim))
        for stage, processes in (("configure", "1"), ("prepare", "1"), ("backbone", "2")):
            variables = {"SLOTLOOP_PROCESSES": processes, "SLOTLOOP_TRACKING": "off", "DVC_STAGE": stage, "DVC_ROOT": folder}
            arguments = (stage, *(overrides if stage == "backbone" else ()))
            run(checkout, stage, "-m", "stages", *arguments, cwd=Path(folder), **variables)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def alone(checkout: Path, dim: int, *overrides: str) -> int:
    """Measure in a process of its own, since the system tells the largest of all that a process has started."""
    call = f"from bench.sharding import peak; from pathlib import Path; print(peak(Path({str(checkout)!r}), {dim}, *{overrides!r}))"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def main(against: str = "", quick: bool = False, json: str = "") -> None:
    """Print a table; --quick: a narrow model."""
    dim = 64 if quick else 512
    peaks = {"all in each": alone(ROOT, dim), "shared out": alone(ROOT, dim, SHARED)}
    if against:
        peaks["other, all in each"] = alone(Path(against).resolve(), dim)
    [*_, last] = peaks
    last = last if against else "all in each"
    if json:
        ratio = f"bytes_vs_{last}"
        write_json(Path(json), [{"trained": name, "bytes": size, ratio: size / peaks[last]} for name, size in peaks.items()])
    rows = [[name, f"{size / 2**20:.0f}", f"{size / peaks[last]:.2f}"] for name, size in peaks.items()]
    print(markdown([["what is trained", "MB", f"of {last}"], *rows]))


if __name__ == "__main__":
    fire.Fire(main)
