"""Every phase over a trunk in four bits, by the preset of the 8 B model: what is trained, evaluated and used later is one model."""

import json

import pytest
import torch

from pipeline.corpora.prepared import Prepared
from pipeline.data.reader import ShardReader
from pipeline.inference.generation import Generator
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from tests.conftest import TRAINING
from tests.stages.test_pretrained import BINDINGS, checkpoint_of
from tests.support.checkpoints import wide
from tests.support.optional import needs
from tests.support.over_checkpoint import run_over

needs("transformers", "bitsandbytes", "peft")
ABOVE = {
    "FINETUNE_TRAINS": ["refiner"],
    "CONTROL_TRAINS": ["model.model.layers.2"],
    "lora.Lora.targets": ["model.model.layers.2.*"],
}


def run(folder, bits, stages, **bindings):
    packed = {"pretrained": {"model": {"path": "checkpoint", "dtype": "fp32", "trunk_bits": bits}}}
    return run_over(folder, "gsm8k_llada", checkpoint_of("llada", wide), stages, {**BINDINGS, **packed, **bindings})


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_every_phase_trains_above_the_trunk(tmp_path, monkeypatch, bits):
    folder = run(tmp_path / "run", bits, ("configure", *TRAINING), **ABOVE)
    monkeypatch.chdir(folder)
    evaluated = json.loads((folder / "outputs/evaluate/metrics.json").read_text())["models"]
    assert len({evaluated[name]["nll"]["mean"] for name in ("frozen", "warmup", "joint", "control_backbone", "control_lora")}) == 5
    backbone = Backbone("data/backbone")
    before, after = backbone.model(), load_model("outputs/joint", backbone, "joint").backbone
    kept = before.state_dict()
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed and all(name.startswith("model.model.layers.2.") for name in changed)
    split, shards = Prepared("data/prepared").split("validation"), ShardReader("data/shards")
    rows = shards.rows("validation", 0)
    stored = shards.read(rows, 48)
    with torch.no_grad():
        live = before.trunk(stored["tokens"].long(), None, 2)
    assert len(rows) == len(split) and torch.equal(live, stored["hidden"])
    assert Generator("outputs/joint", length=6)("What is 3 + 4?").evaluations <= 6


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("CONTROL_TRAINS", "controls: '' would train 'model.model.layers.0.self_attn.q_proj.weight', which is quantised"),
        ("lora.Lora.targets", "LoRA would be merged into 'model.model.layers.0.self_attn.q_proj', which is quantised; name layers"),
    ],
)
def test_training_the_trunk_is_refused_before_anything_runs(tmp_path, capsys, key, message):
    with pytest.raises(AssertionError):
        run(tmp_path / "run", 4, ("configure",), **{name: value for name, value in ABOVE.items() if name != key})
    assert message in capsys.readouterr().err
