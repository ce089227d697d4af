"""What re-using mask draws costs: `python -m bench.draws [--preset sudoku4] [--seeds 3] [--quick] [--out FOLDER] [--json PATH]`.

Warmup on so few examples that it walks them a dozen times, with the trunk live (every epoch masks anew) and with 1, 2 and 4 stored
draws, which repeat. Runs are those of `python -m stages ablate`: same data, backbone and steps, only the masks differ, paired over
seeds. 1 draw comes from shards; 2 and 4 from the trunk with masks that repeat, the same bits (tests/pipeline/data/test_batches.py).
"""

import contextlib
import json as js
import os
import re
import tempfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import fire

from components.inference.metrics import over_seeds
from pipeline import ablation
from pipeline.files import read_json, write_json
from pipeline.reporting.markdown import cell, markdown
from pipeline.settings import params
from pipeline.text.raw_files import RAW_VARIABLE, raw_folder

ROOT = Path(__file__).resolve().parent.parent
LIVE = ablation.BASE  # what the others are compared with
VARIANTS = {
    "4 draws": ["sources.live.draws=4"],
    "2 draws": ["sources.live.draws=2"],
    "1 draw": ["warmup.run.states=@sources.cached"],
}


@dataclass(frozen=True)
class Case:
    """A preset at a size at which training examples come back often.

    Attributes:
        bindings: over the preset's.
        lines: of its raw files, where it has any; name -> how many are kept.
    """

    bindings: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


CASES = {
    "smoke": Case({"sudoku.Sudoku.train": 64, "WARMUP_STEPS": 20}),
    "sudoku4": Case({"sudoku.Sudoku.train": 6000}),
    "gsm8k": Case({"BACKBONE_STEPS": 300, "WARMUP_STEPS": 600, "jsonl.QuestionAnswers.sequence": 128, "VALIDATE_EVERY": 100},
                  {"gsm8k/train.jsonl": 800, "gsm8k/test.jsonl": 300}),
}  # fmt: skip


def main(preset: str = "sudoku4", seeds: int = 3, quick: bool = False, out: str = "", json: str = "") -> None:
    """Print a table; --quick: a small preset, two seeds; --out: keeps the runs, and finished ones are not run again."""
    seeds, preset = (2, "smoke") if quick else (seeds, preset)
    with contextlib.ExitStack() as stack:
        folder = Path(out).resolve() if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place(folder, preset, CASES[preset])
        stack.enter_context(contextlib.chdir(folder))
        ablation.ablate(Path("runs"), VARIANTS, {}, range(seeds), processes=2)
        rows = measured(Path("runs"), seeds)
    if json:
        write_json(Path(json), rows)
    print(
        f"{preset}, {seeds} seeds, {rows[0]['steps']} steps, {rows[0]['epochs']:.1f} epochs; {js.dumps(CASES[preset].bindings)}\n"
    )
    print(markdown([list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]), end="")


def place(folder: Path, preset: str, case: Case) -> None:
    """Settings and raw files of a case in a folder of their own; warmup's states come from the trunk."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "gin").exists():
        (folder / "gin").symlink_to(ROOT / "gin")
    sections = {"common": {**case.bindings, "DRAWS": 1}, "warmup": {"warmup.run.states": "@sources.live"}}
    params.with_bindings(ROOT / "params.yaml", folder / "params.yaml", sections, preset)
    for name, lines in case.lines.items():
        (folder / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        with (raw_folder() / name).open() as file:
            (folder / "raw" / name).write_text("".join(islice(file, lines)))
    if case.lines:
        os.environ[RAW_VARIABLE] = str(folder / "raw")


def measured(runs: Path, seeds: int) -> list[dict[str, Any]]:
    """A row for each variant: means over seeds, and paired differences to the live trunk."""
    found = {name: [reading(runs / f"seed-{seed}", name) for seed in range(seeds)] for name in (LIVE, *VARIANTS)}
    rows = []
    for name, readings in found.items():
        row: dict[str, Any] = {"masks": "live, never repeated" if name == LIVE else name}
        row |= {what: readings[0][what] for what in ("steps", "epochs")}
        for what in ("validation nll", "test nll", "exact"):
            values = [reading[what] for reading in readings]
            row[what] = over_seeds(values)
            if name != LIVE:
                row[f"{what} - live"] = over_seeds([a - b[what] for a, b in zip(values, found[LIVE], strict=True)])
            else:
                row[f"{what} - live"] = None
        rows.append(row)
    return rows


def reading(place: Path, name: str) -> dict[str, Any]:
    """Numbers of one run: the last recursion step's."""
    folder = place / "outputs" / name.replace(" ", "_")
    trained = read_json(folder / "metrics.json", "warmup")
    tested = read_json(Path(f"{folder}-evaluated/metrics.json"), "evaluate")["models"][folder.name]
    rows = read_json(place / "data/prepared/manifest.json", "prepare")["splits"]["train"]["examples"]
    batch = re.search(r"^warmup\.run\.batch_size = (\d+)$", (folder / "config.gin").read_text(), re.MULTILINE)
    assert batch is not None
    return {
        "steps": trained["steps"], "epochs": trained["steps"] * int(batch[1]) / rows,
        "validation nll": trained["validation"][-1]["loss"], "test nll": tested["nll"]["mean"], "exact": tested["exact"]["mean"],
    }  # fmt: skip


def shown(value: Any) -> str:
    """A value of a row in a table."""
    if value is None:
        return ""
    return cell(value) if isinstance(value, dict) else f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    fire.Fire(main)
