"""A whole stage beside an older commit's: `python -m bench.stage --against PATH [--stage evaluate] [--pairs 2] [--json PATH]`.

Both are finished checkouts (`dvc repro`); the stage runs in each in turn, in a process of its own with the checkout's interpreter
if it has one, and writes to a folder that is thrown away. Time is processor time with all threads, ratios are medians of those
within a pair. Settings are those of each checkout's params.yaml: compare presets that both have.
"""

import resource
import statistics
import tempfile
from pathlib import Path

import fire

from bench.checkout import ROOT, run
from pipeline.files import write_json
from pipeline.reporting.markdown import markdown


def seconds(checkout: Path, stage: str) -> float:
    """Processor time of a stage in a checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        run(checkout, stage, "-m", "stages", stage, "--out", f"{folder}/out", SLOTLOOP_TRACKING="off")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(against: str, stage: str = "evaluate", pairs: int = 2, json: str = "") -> None:
    """Print a table."""
    checkouts = {"other": Path(against).resolve(), "here": ROOT}
    taken: dict[str, list[float]] = {name: [] for name in checkouts}
    for _ in range(pairs):
        for name, checkout in checkouts.items():
            taken[name].append(seconds(checkout, stage))
    rows = [
        {
            "stage": stage,
            "checkout": name,
            "seconds": statistics.median(values),
            "seconds_vs_other": statistics.median(a / b for a, b in zip(values, taken["other"], strict=True)),
        }
        for name, values in taken.items()
    ]
    if json:
        write_json(Path(json), rows)
    print(markdown([list(rows[0]), *([v if isinstance(v, str) else f"{v:.3g}" for v in row.values()] for row in rows)]), end="")


if __name__ == "__main__":
    fire.Fire(main)
