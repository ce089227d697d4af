"""Depth over several seeds: `python -m bench.depth [--preset sudoku6] [--models phases] [--seeds 3] [--clues 18,14,12]`.

For each seed, in a workspace as `python -m stages ablate` makes them (--out keeps them), data, backbone, shards and the models:
"updates", warmup with each update; "phases", the preset's warmup and joint; or "core", a recursive core as the backbone, alone.
Then exact answers of whole puzzles after 1 to 256 recursion steps on each split. Prints a table of means with 95 % intervals over
seeds (Student's t) and of the paired differences from the trained number of steps; with --picture PATH draws it.
"""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import fire

from bench.seeds import BELOW, ROOT
from components.inference.metrics import over_seeds
from pipeline import ablation
from pipeline.files import read_json, write_json
from pipeline.reporting import figures
from pipeline.reporting.markdown import cell, markdown

Trained = Mapping[str, tuple[str, Sequence[str]]]  # model -> the stage that trains it, and settings
MODELS: Mapping[str, Trained] = {
    "updates": {
        "damped": ("warmup", ["refiner.SlotRefiner.update=@delta.Damped()"]),
        "added": ("warmup", ["refiner.SlotRefiner.update=@delta.RmsScaled()"]),
    },
    "phases": {"warmup": ("warmup", []), "joint": ("joint", [])},
    "core": {},
}
CORE = "BACKBONE=@recursive_lm.RecursiveLM"
DEPTHS = (1, 2, 4, 6, 8, 16, 64, 256)
Curves = Mapping[str, Sequence[Mapping[int, float]]]  # by model, for each seed: exact by steps


def main(
    preset: str = "sudoku6",
    models: Literal["updates", "phases", "core"] = "updates",
    seeds: int = 3,
    clues: Sequence[int] | int = (18, 14, 12),
    out: str = "",
    picture: str = "",
    json: str = "",
    processes: int = 2,
    quick: bool = False,
) -> None:
    """Run what is missing and print the table; --models: what is looked at; --quick: the smoke preset, two seeds, its own split."""
    splits = [f"test_{number}" for number in ([clues] if isinstance(clues, int) else clues)]
    if quick:
        preset, seeds, splits = "smoke", 2, ["test_7"]
    trained_above, target = MODELS[models], Path(picture).resolve() if picture else None
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(processes) as pool:
        folder = Path(out).resolve() if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.chdir(ROOT))
        places = [ablation.workspace(folder, seed, preset) for seed in range(seeds)]
        measured = list(pool.map(lambda place: measure(place, trained_above, splits), places))
    by_split = {split: {name: [seed[split][name] for seed in measured] for name in measured[0][split]} for split in splits}
    trained = measured[0]["trained"]
    print(f"{preset}, exact, {seeds} seeds; trained with {trained} steps\n\n{table(by_split, trained)}")
    if target:
        figures.over_depth(by_split, trained, target)
    if json:
        write_json(Path(json), {"trained": trained, "splits": by_split})


def measure(place: Path, models: Trained, splits: Sequence[str]) -> dict[str, Any]:
    """Exact answers of one seed's models, by split, model and number of steps, and the trained number."""
    more = [f"sudoku.Sudoku.test_clues={tuple(int(split.removeprefix('test_')) for split in splits)}"]
    ablation.run_stage(place, "prepare", *more, f"--out={BELOW['prepare']}")
    if models:
        for stage in ("backbone", "extract"):
            ablation.run_stage(place, stage, f"--out={BELOW[stage]}")
    else:
        ablation.run_stage(place, "backbone", CORE, f"--out={BELOW['backbone']}")
    for name, (stage, settings) in models.items():
        ablation.run_stage(place, stage, *settings, f"--out=outputs/{name}")
    folders = f"evaluate.run.models={ {name: f'outputs/{name}' for name in models} }"
    exact: dict[str, Any] = {}
    for split in splits:
        look = [f"MEASURES={ {split: (split, 1.0)} }", f"HEADLINE='{split}'", f"DEPTHS={DEPTHS}", "DECODES={}", "HALTS={}"]
        ablation.run_stage(place, "evaluate", folders, *look, f"--out=outputs/{split}")
        of_models = read_json(place / "outputs" / split / "metrics.json", "evaluate")["models"]
        rows = {name: of_models[name]["depths"] for name in models} or {"core": of_models["frozen"]["depths"]}
        exact[split] = {name: {row["steps"]: row["exact"]["mean"] for row in rows[name]} for name in rows}
        exact["trained"] = next(row["steps"] for row in next(iter(rows.values())) if row["trained"])
    return exact


def table(by_split: Mapping[str, Curves], trained: int) -> str:
    """A row for each split and model: means by steps, and the deepest's difference from the trained number of steps."""
    [first, *_] = next(iter(next(iter(by_split.values())).values()))
    header = ["split", "model", *(f"{steps}" for steps in first), f"{DEPTHS[-2]} - {trained}", f"{DEPTHS[-1]} - {trained}"]
    rows = []
    for split, curves in by_split.items():
        for name, by_seed in curves.items():
            means = [f"{over_seeds([curve[steps] for curve in by_seed])['mean']:.3f}" for steps in first]
            gains = [cell(over_seeds([curve[steps] - curve[trained] for curve in by_seed])) for steps in DEPTHS[-2:]]
            rows.append([split, name, *means, *gains])
    return markdown([header, *rows])


if __name__ == "__main__":
    fire.Fire(main)
