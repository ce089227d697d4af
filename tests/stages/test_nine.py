"""The presets of 9x9 at a small size through all stages: puzzles of a stated difficulty, and answers by it."""

import json

import pytest
import torch

from pipeline.corpora.prepared import Prepared
from pipeline.corpora.solver import Solver
from tests.conftest import run_stages, workspace
from tests.support.handmade import cells

SMALL = {
    "sudoku.Sudoku": {"grids": 60, "train": 48, "validation": 8, "test": 8}, "THREADS": 1, "DIM": 16, "HEADS": 2,
    "BACKBONE_STEPS": 2, "WARMUP_STEPS": 2, "JOINT_STEPS": 2, "BATCH": 8, "BACKBONE_BATCH": 8, "VALIDATE_EVERY": 2,
    "RECURSION_STEPS": 2, "DEPTHS": [1, 4], "EVALUATION_BATCH": 8,
}  # fmt: skip
STAGES = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report")


@pytest.mark.parametrize("preset", ["sudoku9", "recursive9"])
def test_two_steps_of_every_stage(tmp_path, preset):
    folder = workspace(tmp_path / preset, preset)
    (folder / "params.yaml").write_text(json.dumps({"preset": preset, "common": {"bindings": SMALL}}))
    run_stages(folder, STAGES)
    metrics = json.loads((folder / "outputs/evaluate/metrics.json").read_text())
    split = Prepared(folder / "data/prepared").split(metrics["headline"])
    puzzles = [
        [None if hidden else token for token, hidden in zip(tokens, response, strict=True)]
        for tokens, response in zip(split.tokens.tolist(), split.response.tolist(), strict=True)
    ]
    searches = [Solver(3, 3).search(puzzle) for puzzle in puzzles]
    assert torch.equal(split.difficulty, torch.tensor([[s.rounds, s.guesses] for s in searches], dtype=torch.int32))
    for measured in metrics["models"].values():
        bands = measured["by_difficulty"]
        assert set(bands) == {"clues", "rounds", "guesses"} and len(bands["clues"]) == 1
        assert all(sum(band["n"] for band in of_kind.values()) == 8 for of_kind in bands.values())
    section = (folder / "outputs/report/report.md").read_text().partition("\n## By difficulty\n")[2].partition("\n## ")[0]
    header, _, *rows = (row for row in cells(section) if len(row) > 1)
    assert header[:2] == ["of the puzzle", "n"] and set(header[2:]) == set(metrics["models"])
    assert sum(int(n) for band, n, *_ in rows if band.endswith("rounds")) == 8
