"""The whole pipeline on the smoke preset: what each stage leaves, golden losses, and the same bytes twice."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from stages.__main__ import main
from tests.conftest import run_stages, workspace
from tests.support import golden


def test_every_stage_leaves_its_outputs(finished):
    for phase in ("outputs/warmup", "outputs/joint", "outputs/finetune"):
        left = {p.name for p in (finished / phase).iterdir()}
        always = {"model.safetensors", "model.json", "curves.csv", "metrics.json", "config.gin", "config.yaml"}
        assert left == always | ({"validation.csv"} if "finetune" not in phase else set())  # that phase is off
    assert {p.name for p in (finished / "outputs/evaluate").iterdir()} == {
        "metrics.json",
        "samples.jsonl",
        "trace.json",
        "config.gin",
        "config.yaml",
    }
    assert {"report.md", "table.md", "losses.png", "steps.png", "slots.png", "puzzles.png"} <= {
        p.name for p in (finished / "outputs/report").iterdir()
    }


def test_curves_have_one_row_a_step_with_every_column(finished):
    with (finished / "outputs/warmup/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(6))
    assert list(rows[0])[:6] == ["step", "loss", "loss/step_0", "loss/step_1", "loss/step_2", "loss/step_3"]
    assert {"lr", "grad_norm", "slot/context", "gate/confidence", "confidence", "delta", "overlap"} <= set(rows[0])


def test_losses_are_the_golden_ones(finished):
    """A refactor that should not change results reproduces these; `make golden` writes them anew, in a commit that says why."""
    expected, measured = json.loads(golden.GOLDEN.read_text()), golden.losses(finished)
    assert set(measured) == set(expected) == set(golden.PHASES)
    for phase, curve in expected.items():
        assert measured[phase] == pytest.approx(curve, rel=1e-4), phase


def test_golden_losses_are_written_as_they_are_read(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "GOLDEN", tmp_path / "smoke.json")
    golden.write(finished)
    written = json.loads((tmp_path / "smoke.json").read_text())
    assert {phase: pytest.approx(curve, abs=1e-8) for phase, curve in written.items()} == golden.losses(finished)
    assert [len(curve) for curve in written.values()] == [len(curve) for curve in golden.losses(finished).values()]


def test_warmup_starts_from_the_backbone_itself(finished):
    """Step losses of the first update are all equal: the refiner begins as the identity."""
    with (finished / "outputs/warmup/curves.csv").open() as file:
        first = next(csv.DictReader(file))
    assert len({first[f"loss/step_{k}"] for k in range(4)}) == 1


def test_two_runs_from_scratch_give_the_same_bytes(finished, tmp_path):
    again = workspace(tmp_path / "again", "smoke")
    run_stages(again, ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report"))
    files = sorted(p.relative_to(finished) for part in ("data", "outputs") for p in (finished / part).rglob("*") if p.is_file())
    assert len(files) > 40
    different = [str(f) for f in files if (finished / f).read_bytes() != (again / f).read_bytes()]
    assert not different


def test_another_seed_gives_other_weights(finished, tmp_path):
    other = workspace(tmp_path / "other", "smoke")
    run_stages(other, ("prepare",))
    run_stages(other, ("backbone",), "SEED=1")
    assert (other / "data/prepared/train.safetensors").read_bytes() == (finished / "data/prepared/train.safetensors").read_bytes()
    assert Backbone(other / "data/backbone").fingerprint != Backbone(finished / "data/backbone").fingerprint


def test_warmup_leaves_the_backbone_alone_and_joint_trains_the_tail(finished):
    backbone = Backbone(finished / "data/backbone")
    frozen = backbone.model().state_dict()
    warmup = load_model(finished / "outputs/warmup", backbone, "warmup").backbone.state_dict()
    joint = load_model(finished / "outputs/joint", backbone, "joint").backbone.state_dict()
    assert all(torch.equal(frozen[name], warmup[name]) for name in frozen)
    changed = {name.split(".")[1] for name in frozen if not torch.equal(frozen[name], joint[name])}
    assert changed == {"1"}  # blocks.1, the last of two


def test_finetune_off_hands_joint_on(finished):
    backbone = Backbone(finished / "data/backbone")
    joint = load_model(finished / "outputs/joint", backbone, "joint").state_dict()
    handed_on = load_model(finished / "outputs/finetune", backbone, "finetune").state_dict()
    assert all(torch.equal(joint[name], handed_on[name]) for name in joint)


def test_finetune_on_trains_every_layer(copy_of):
    run_stages(copy_of, ("finetune",), "finetune.run.steps=2")
    backbone = Backbone(copy_of / "data/backbone")
    before, after = (
        backbone.model().state_dict(),
        load_model(copy_of / "outputs/finetune", backbone, "finetune").backbone.state_dict(),
    )
    assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith("blocks.0"))
    run_stages(copy_of, ("evaluate",))
    assert "finetune" in json.loads((copy_of / "outputs/evaluate/metrics.json").read_text())["models"]


@pytest.mark.parametrize("folder", ["warmup", "joint", "finetune", "controls/backbone", "controls/warmup"])
def test_what_is_stored_of_the_backbone_is_what_differs_from_it(finished, folder):
    stored = load_file(finished / "outputs" / folder / "model.safetensors")
    backbone = Backbone(finished / "data/backbone").model().state_dict()
    model = load_model(finished / "outputs" / folder, Backbone(finished / "data/backbone"), folder)
    weights = getattr(model, "backbone", model).state_dict()
    differing = {f"backbone.{name}" for name, value in weights.items() if not torch.equal(value, backbone[name])}
    assert {name for name in stored if not name.startswith("refiner.")} == differing


def test_controls_spend_the_compute_they_are_matched_to(finished):
    def flops(folder):
        return json.loads((finished / folder / "metrics.json").read_text())["flops"]

    matched = {
        "outputs/controls/backbone": flops("outputs/warmup") + flops("outputs/joint"),
        "outputs/controls/warmup": flops("outputs/joint"),
    }
    for folder, budget in matched.items():
        metrics = json.loads((finished / folder / "metrics.json").read_text())
        assert abs(metrics["flops"] - budget) <= metrics["flops"] / metrics["steps"]  # within one step


def test_metrics_keep_their_contract(finished):
    metrics = json.loads((finished / "outputs/evaluate/metrics.json").read_text())
    models = metrics["models"]
    sealed = {"stage", "inputs", "sha256", "digest"}
    assert set(metrics) == {"models", "headline", "measures", "evaluated", "differences", *sealed}
    assert set(models) == {"frozen", "warmup", "joint", "control_backbone", "control_warmup"}  # finetune is switched off
    for model in models:
        for key in ("nll", "token_accuracy", "exact"):
            value = models[model][key]
            assert set(value) == {"mean", "low", "high", "n"} and value["n"] == 30
            assert value["low"] <= value["mean"] <= value["high"]
        assert len(models[model]["exact_by_step"]) == (1 if model in ("frozen", "control_backbone") else 4)
    assert metrics["differences"]["warmup - frozen"]["test_5"]["nll"]["n"] == 30
    assert set(models["warmup"]["test_5"]["decode_2"]) == {"exact", "token_accuracy", "flops_per_answer"}


def test_samples_are_readable(finished):
    lines = [json.loads(line) for line in (finished / "outputs/evaluate/samples.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    assert "." in lines[0]["prompt"] and "." not in lines[0]["answer"]
    assert len(lines[0]["models"]["joint"]) == 4


def test_live_trunk_takes_the_place_of_the_cache(copy_of):
    """`states = @sources.live` changes where states come from and nothing else: warmup trains without shards."""
    for shard in (copy_of / "data/shards").glob("*.tar"):
        shard.unlink()
    run_stages(copy_of, ("warmup",), "warmup.run.states=@sources.live")
    assert len(golden.losses(copy_of)["outputs/warmup"]) == 6


def test_a_stream_takes_the_place_of_random_access(copy_of, monkeypatch, capsys):
    """`states = @sources.streamed` in warmup and joint, tars elsewhere; while all blocks are held at once, nothing changes."""
    before = {phase: golden.losses(copy_of)[f"outputs/{phase}"] for phase in ("warmup", "joint")}
    elsewhere = copy_of / "elsewhere"
    elsewhere.mkdir()
    for shard in (copy_of / "data/shards").glob("*.tar"):
        shard.rename(elsewhere / shard.name)
    urls = f"sources.streamed.urls={sorted(map(str, elsewhere.iterdir()))}"
    for phase in before:
        run_stages(copy_of, (phase,), f"{phase}.run.states=@sources.streamed", urls)
        assert golden.losses(copy_of)[f"outputs/{phase}"] == before[phase]
    tar = elsewhere / "train-00-00000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    monkeypatch.chdir(copy_of)
    assert main(["warmup", "warmup.run.states=@sources.streamed", urls]) == 1
    error = capsys.readouterr().err
    assert f"{tar.name} :: 000000.safetensors: " in error and "Traceback" not in error
