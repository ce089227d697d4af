"""A file of one's own, from `new` to a report: every stage at toy size, in this process."""

import json
import shutil

import numpy as np
import pytest

from pipeline.corpora.prepared import Prepared
from tests.conftest import ROOT, TRAINING, run_stages
from tests.support.once import made_once, shared_folder

SUMS = [{"a": f"What is {i} + {i + 1}?", "b": f"{2 * i + 1}"} for i in range(100)]
TINY = {
    "DIM": 16, "LAYERS": 2, "HEADS": 2, "BACKBONE_STEPS": 3, "WARMUP_STEPS": 3, "JOINT_STEPS": 2, "VALIDATE_EVERY": 3, "DRAWS": 1,
    "THREADS": 1, "PRECISION": "fp32", "STATE_DTYPE": "fp32", "answers.Answers.items": 4, "answers.Answers.passes": 2,
    "likelihood.Likelihood.items": 4, "likelihood.Likelihood.samples": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return made_once(shared_folder(tmp_path_factory) / "own", run_own)


def run_own(folder):
    """Write rows, have a preset made of them, and run every stage on it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "gin", folder / "gin")
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    (folder / "params.yaml").write_text("preset: sudoku4\n")
    run_stages(folder, ("new",), "mine", "--train=mine.jsonl", "--prompt={a}\n", "--response={b}")
    (folder / "params.yaml").write_text(json.dumps({"preset": "mine", "common": {"bindings": TINY}}))
    run_stages(folder, TRAINING)


def test_rows_of_one_s_own_come_out_as_a_report(trained):
    metrics = json.loads((trained / "outputs/evaluate/metrics.json").read_text())
    prepared = Prepared(trained / "data/prepared")
    rows = {name: len(prepared.split(name)) for name in prepared.manifest["splits"]}
    assert rows.keys() == {"train", "validation", "test"} and sum(rows.values()) == len(SUMS) and metrics["headline"] == "mask_30"
    assert {"frozen", "warmup", "joint", "control_backbone"} <= metrics["models"].keys()
    assert "whole" in metrics["models"]["joint"]["answers"]
    assert (trained / "outputs/report/index.html").is_file() and (trained / "outputs/report/report.md").is_file()


def test_a_folder_of_embeddings_comes_out_as_a_report(tmp_path):
    shutil.copytree(ROOT / "gin", tmp_path / "gin")
    (tmp_path / "mine").mkdir()
    values = np.random.default_rng(0).normal(size=(80, 3, 16))
    np.save(tmp_path / "mine/train.npy", values.cumsum(1).astype(np.float32))
    (tmp_path / "params.yaml").write_text("preset: sudoku4\n")
    run_stages(tmp_path, ("new",), "vectors", "--train=mine")
    tiny = {name: TINY[name] for name in ("WARMUP_STEPS", "VALIDATE_EVERY", "THREADS")}
    (tmp_path / "params.yaml").write_text(json.dumps({"preset": "vectors", "common": {"bindings": tiny}}))
    run_stages(tmp_path, TRAINING)
    models = json.loads((tmp_path / "outputs/evaluate/metrics.json").read_text())["models"]
    assert {"frozen", "warmup", "copy_previous"} <= models.keys() and models["warmup"]["cosine"]["n"] > 1
    assert (tmp_path / "outputs/report/index.html").is_file()
