"""The phase of adapters: it spends its budget, goes on where it was killed with the same bytes, and leaves the backbone alone."""

import json
import os
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from components.objective.masking import exact_count
from components.training.optim import adamw
from pipeline.corpora.prepared import Vocabulary
from pipeline.data.batches import LiveSource
from pipeline.files import write_json
from pipeline.machine import snapshots
from pipeline.machine.process import Interrupted
from pipeline.manifests import write_manifest
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import load_model, save_model
from pipeline.models.lora import Lora
from pipeline.models.model_folder import ModelFolder, seal
from pipeline.models.pretrained import Source, build
from pipeline.training.loop import fit
from pipeline.training.lora_phase import run_lora
from tests.support.checkpoints import LAYOUTS, VOCAB, written
from tests.support.optional import needs

needs("transformers", "peft")
WORDS = Vocabulary(VOCAB, VOCAB - 1, VOCAB - 2, 6, "text")
STEPS = 7


@pytest.fixture(params=["fp32", "bf16"])
def backbone(request, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    config, shapes = LAYOUTS["llada"]
    written(tmp_path / "checkpoint", config, shapes())
    save_backbone(tmp_path / "backbone", build(Source(str(tmp_path / "checkpoint"), dtype=request.param)), WORDS)
    return Backbone(tmp_path / "backbone")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """``work()``: the block's snapshots are kept unless it ends well."""
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return lambda: snapshots.workspace("controls", "k" * 64)


@pytest.fixture
def run(rows, runtime, tmp_path, backbone):
    """``run(name, model)``: the phase over 20 rows, written to a folder of that name."""

    def run(name, model, budget, training=fit, parameters=700):
        settings = {"validate_every": 2, "save_every": 3, "log_every": 2, "accumulation": 2, "ema": 0.9}
        training = partial(training, optimizer=partial(adamw, lr=5e-4), **settings)
        source, out = LiveSource(rows(20), WORDS, exact_count, 0), tmp_path / name
        write_manifest(tmp_path / "warmup/model.json", {"kind": "refined"})
        write_json(tmp_path / "warmup/metrics.json", {"flops": budget, "parameters": {"trainable": parameters}})
        seal(tmp_path / "warmup", "warmup", {})
        compared = ModelFolder(tmp_path / "warmup", "warmup")
        run_lora(
            "controls/lora", Lora(), model, lambda split: source, out, partial(save_model, out, model, backbone), runtime,
            fit=training, compared_with=compared, seed=0, batch_size=4, validation_batch_size=8, matched=[compared],
        )  # fmt: skip
        return out

    return run


@pytest.fixture
def budget(run, backbone):
    """Operations of so many steps."""
    folder = run("one", backbone.model(), 1)
    return STEPS * json.loads((folder / "metrics.json").read_text())["flops_per_step"]


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_it_spends_its_budget_on_adapters_alone(run, backbone, budget, capsys):
    model = backbone.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder = run("lora", model, budget)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == STEPS and metrics["flops"] == budget
    assert metrics["lora"] == {"rank": 1, "alpha": 32.0, "layers": 21, "parameters": 744, "compared_with": 700}
    assert metrics["parameters"] == {"total": sum(v.numel() for v in before.values()) + 744, "trainable": 744}
    assert "controls/lora: LoRA of rank 1 in 21 linear layers, 744 parameters; 700 are trained by" in capsys.readouterr().out
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(value, before[name]) for name, value in after.items())
    changed = {name for name, value in load_file(folder / "model.safetensors").items() if not torch.equal(value, before[name[9:]])}
    assert len(changed) == 21 and metrics["validation"][-1]["loss"] < metrics["validation"][0]["loss"]
    assert "lora" not in "".join(load_model(folder, backbone, "controls").state_dict())


def test_after_sigterm_the_next_run_ends_with_the_same_bytes(run, backbone, budget, work):
    expected = content(run("whole", backbone.model(), budget, partial(fit, schedule=lambda step, steps: 1.0)))
    for last in (0, 2, 5):

        def ended_at(now, steps, last=last):
            if now == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return 1.0

        name, seen = f"parts-{last}", []
        with pytest.raises(Interrupted, match=rf"controls/lora: SIGTERM after step {last + 1} of {STEPS}; run it again"), work():
            run(name, backbone.model(), budget, partial(fit, schedule=ended_at))
        with work():
            folder = run(
                name, backbone.model(), budget, partial(fit, schedule=lambda step, steps, seen=seen: seen.append(step) or 1.0)
            )
        assert seen == list(range(last + 1, STEPS)) and content(folder) == expected
