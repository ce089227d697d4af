"""The pipeline through DVC in a temporary clone, as users run it (smoke preset). `make test-slow`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
TEN = ["configure", "prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report"]


def dvc(folder: Path, *arguments: str, expect: int = 0, **environment: str) -> str:
    """Run dvc in a folder; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**{k: v for k, v in os.environ.items() if k != "DVC_STAGE"}, "PATH": path, **environment}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    """Stages that DVC ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def clone_to(folder: Path, preset: str) -> Path:
    """A clone with the working tree's files, set to a preset."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for file in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    set_preset(folder, preset)
    return folder


def set_preset(folder: Path, preset: str) -> None:
    params = folder / "params.yaml"
    lines = [f"preset: {preset}" if line.startswith("preset:") else line for line in params.read_text().splitlines()]
    params.write_text("\n".join(lines) + "\n")


def bind(params: Path, stage: str, bindings: str) -> None:
    """Give a stage's section its bindings."""
    empty = f"{stage}:\n  gin: []\n  bindings: "
    assert empty + "{}" in params.read_text()
    params.write_text(params.read_text().replace(empty + "{}", empty + bindings))


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone after one `dvc repro`."""
    folder = clone_to(tmp_path_factory.mktemp("clone") / "slotloop", "smoke")
    (folder / "dvc.lock").unlink(missing_ok=True)
    assert ran(dvc(folder, "repro")) == TEN
    return folder


def test_a_second_repro_runs_nothing(clone):
    assert ran(dvc(clone, "repro")) == []


def test_git_sees_metrics_and_lock_only(clone):
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True).stdout
    changed = {line[3:] for line in status.splitlines()}
    outputs = {name for name in changed if name.startswith(("outputs/", "data/", "build/"))}
    assert "dvc.lock" in changed
    assert all(name.endswith("metrics.json") for name in outputs)


def test_a_learning_rate_of_joint_runs_joint_and_what_follows(clone):
    params = clone / "params.yaml"
    before = params.read_text()
    params.write_text(
        before.replace("joint:\n  gin: []\n  bindings: {}", "joint:\n  gin: []\n  bindings: {optim: {adamw: {lr: 5e-4}}}")
    )
    assert params.read_text() != before
    assert ran(dvc(clone, "repro")) == ["configure", "joint", "finetune", "controls", "evaluate", "report"]
    params.write_text(before)
    assert ran(dvc(clone, "repro")) == []  # yesterday's result comes back from the run cache


def test_a_comment_runs_configure_alone(clone):
    gin = clone / "gin" / "warmup.gin"
    gin.write_text(gin.read_text() + "# a comment\n")
    assert ran(dvc(clone, "repro")) == ["configure"]


def test_a_mistake_stops_before_anything_costs(clone):
    params = clone / "params.yaml"
    before = params.read_text()
    params.write_text(
        before.replace("warmup:\n  gin: []\n  bindings: {}", "warmup:\n  gin: []\n  bindings: {loop: {fit: {step: 9}}}")
    )
    output = dvc(clone, "repro", expect=255)
    assert "params.yaml:" in output and "has no parameter 'step'; did you mean 'steps'?" in output
    assert ran(output) == ["configure"] and "Traceback" not in output
    params.write_text(before)


def test_an_experiment_overrides_a_binding(clone):
    output = dvc(clone, "exp", "run", "-S", "+warmup.bindings.loop.fit.steps=4", "-n", "shorter")
    assert "warmup" in ran(output) and "extract" not in ran(output)
    assert json.loads((clone / "outputs/warmup/metrics.json").read_text())["steps"] == 4


def test_metrics_and_plots_are_shown(clone):
    assert "outputs/evaluate/metrics.json" in dvc(clone, "metrics", "show")
    assert "slots (warmup)" in dvc(clone, "plots", "show", "--json")


RAW = os.environ.get("SLOTLOOP_RAW")


@pytest.mark.skipif(not RAW, reason="SLOTLOOP_RAW is not set: no GSM8K here")
def test_gsm8k_runs_end_to_end_on_real_text(tmp_path):
    folder = clone_to(tmp_path / "text", "gsm8k_smoke")
    (folder / "dvc.lock").unlink(missing_ok=True)
    assert ran(dvc(folder, "repro")) == TEN
    metrics = json.loads((folder / "outputs/evaluate/metrics.json").read_text())
    assert metrics["frozen"]["nll"]["n"] == 1319
    sample = json.loads((folder / "outputs/evaluate/samples.jsonl").read_text().splitlines()[0])
    assert "_" in sample["prompt"] and "####" in sample["answer"]
