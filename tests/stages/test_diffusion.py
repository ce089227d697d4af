"""Every phase over a causal model that the stage backbone makes a masked-diffusion one: by the toy preset of the real one."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from components.objective.masking import exact_count
from pipeline.command_line import SECTIONS
from pipeline.corpora.prepared import Prepared
from pipeline.data import sources
from pipeline.evaluation import evaluator
from pipeline.files import sha256
from pipeline.inference.generation import Generator
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.planning import plan as planning
from pipeline.settings import config, params
from pipeline.text import tokenizer as bpe
from pipeline.training import loop
from stages.__main__ import main
from tests.conftest import TRAINING
from tests.support import gguf_files
from tests.support.optional import needs
from tests.support.over_checkpoint import run_over

needs("transformers", "peft")
STEPS = 6
BINDINGS = {
    "BACKBONE_LR": 3e-3,  # its weights are random
    "jsonl.QuestionAnswers": {"special": {"mask": "<mask>", "end": "<end>", "pad": "<pad>"}},
}


def checkpoint(folder, encoding):
    """A causal llama with tied weights, its tokenizer beside it."""
    gguf_files.llama(encoding.size, seq=64).save_pretrained(folder)
    bpe.save(encoding.tokenizer, folder / "tokenizer.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage."""
    folder = tmp_path_factory.mktemp("diffusion") / "run"
    return run_over(folder, "gsm8k_smol_diffusion_smoke", checkpoint, ("configure", *TRAINING), BINDINGS)


def metrics_of(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def test_the_backbone_is_trained_and_left_whole(inside):
    description, metrics = json.loads((inside / "data/backbone/model.json").read_text()), metrics_of("data/backbone")
    assert metrics["steps"] == STEPS and metrics["flops"] > 0
    losses = [entry["loss"] for entry in metrics["validation"]]
    assert len(losses) == STEPS // 2 and losses[-1] < losses[0]
    weights = inside / "data/backbone/model.safetensors"
    assert description["fingerprint"] == sha256(weights) == description["sha256"]["model.safetensors"]
    source = description["architecture"]["source"]
    assert (source["shift"], source["objective"]) == (1, "masked diffusion")
    assert not description["selfcheck"]["causal"] and set(description["files"]) == {"config.json", "model.safetensors"}
    stored, came = load_file(weights), load_file("checkpoint/model.safetensors")
    assert set(stored) == set(came) and not any(torch.equal(stored[name], came[name]) for name in stored)
    assert sum(value.numel() for value in stored.values()) == metrics["parameters"]["trainable"] == metrics["parameters"]["total"]


def test_every_phase_trains(inside):
    for phase, steps in (("warmup", 4), ("joint", 3)):
        assert metrics_of(f"outputs/{phase}")["steps"] == steps and metrics_of(f"outputs/{phase}")["flops"] > 0
    models = metrics_of("outputs/evaluate")["models"]
    assert len({models[name]["nll"]["mean"] for name in ("frozen", "warmup", "joint", "control_backbone", "control_lora")}) == 5
    assert (inside / "outputs/report/report.md").is_file()


def test_the_frozen_loss_is_what_the_library_computes_from_the_states_before_the_masks(inside):
    """Mean over hidden tokens of -log p, each read one place before it, by the library's own load of the folder."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained("data/backbone", dtype=torch.float32).eval()
    data = Prepared("data/prepared")
    losses = []
    for batch in evaluator.batches(data.split("test"), data.vocabulary, 0.3, 0, 6):
        assert bool((batch.tokens[batch.masked] == data.vocabulary.mask_id).all())
        with torch.no_grad():
            logits = model(input_ids=batch.tokens.long(), attention_mask=batch.attention.long(), use_cache=False).logits
        for row, hidden in enumerate(batch.masked):
            places = hidden.nonzero()[:, 0]
            losses.append(F.cross_entropy(logits[row, places - 1], batch.targets[row, places].long(), reduction="none"))
    expected = torch.cat(losses).mean().item()
    assert metrics_of("outputs/evaluate")["models"]["frozen"]["nll"]["mean"] == pytest.approx(expected, rel=1e-4)


def test_stored_states_are_those_of_the_live_trunk_and_the_tail_makes_of_them_what_the_whole_does(inside):
    backbone = Backbone("data/backbone")
    given = {"prepared": "data/prepared", "masking": exact_count, "seed": 0, "tail_layers": 1, "dtype": "fp32", "draws": 1}
    cached = sources.cached("train", backbone=backbone, shards="data/shards", buckets=())
    live = sources.live("train", backbone=backbone, **given, runtime=Runtime("cpu", threads=1))
    rows = torch.arange(8)
    a, b = (source.batch(rows, torch.zeros_like(rows)) for source in (cached, live))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.masked, b.masked)
    assert torch.equal(a.hidden[a.attention], b.hidden[a.attention])
    tokens_alone = type(b)(b.tokens, b.targets, b.masked, b.weights, b.attention)
    assert torch.equal(backbone.model(2).states(b)[b.attention], backbone.model().states(tokens_alone)[b.attention])


def test_joint_changes_the_last_layer_alone(inside):
    backbone = Backbone("data/backbone")
    before, after = backbone.model().state_dict(), load_model("outputs/joint", backbone, "joint").backbone.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("model.model.layers.2.") for name in changed)


def test_what_was_planned_is_what_was_done(inside):
    texts = config.resolve_all(SECTIONS, params.read(Path("params.yaml"), SECTIONS))
    costs = {cost.stage: cost for cost in planning.plan(texts).costs}
    for stage, folder in (("backbone", "data/backbone"), ("warmup", "outputs/warmup"), ("joint", "outputs/joint")):
        metrics, cost = metrics_of(folder), costs[stage]
        assert (cost.steps, cost.flops, cost.trained) == (metrics["steps"], metrics["flops"], metrics["parameters"]["trainable"])
    assert costs["backbone"].trained == costs["backbone"].loaded


def test_an_exported_model_takes_the_trained_backbone_along(inside, tmp_path, monkeypatch):
    question = "What is 3 + 4?"
    assert main(["export", "--out=exported"]) == 0
    card = (inside / "exported/README.md").read_text()
    assert "trained by the stage backbone from `checkpoint`, revision none; in `backbone/`" in card
    expected = Generator("outputs/joint", length=6)(question)
    shutil.move(inside / "exported", tmp_path / "alone")
    monkeypatch.chdir(tmp_path)  # where no checkpoint is
    assert {path.name for path in Path("alone/backbone").iterdir()} == {"model.json", "model.safetensors", "config.json"}
    assert Generator("alone", length=6)(question) == expected


def test_adaptation_that_was_stopped_goes_on_and_leaves_the_same_bytes(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "again"
    shutil.copytree(finished, folder, symlinks=True)
    shutil.rmtree(folder / "data/backbone")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_STAGE", "test")
    monkeypatch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
    set_lr, calls = loop.set_lr, []

    def stop_in_the_fifth(*given):
        calls.append(given)
        return signal.raise_signal(signal.SIGTERM) if len(calls) == 5 else set_lr(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "set_lr", stop_in_the_fifth)
        assert main(["backbone"]) != 0
    assert len(calls) == 5 and "SIGTERM after step 5 of 6" in capsys.readouterr().err
    assert main(["backbone"]) == 0
    names = sorted(path.name for path in (finished / "data/backbone").iterdir())
    assert "model.safetensors" in names and names == sorted(path.name for path in (folder / "data/backbone").iterdir())
    assert all((folder / "data/backbone" / name).read_bytes() == (finished / "data/backbone" / name).read_bytes() for name in names)


SPECIAL = "jsonl.QuestionAnswers.special={{'mask': '{}', 'end': '<end>', 'pad': '<pad>'}}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (SPECIAL.format("<hidden>"), r"has no token '<hidden>' \(mask\)"),
        (
            SPECIAL.format("<end>"),
            r"'<end>' of checkpoint is both mask and end",
        ),
        (
            SPECIAL.format("<pad>"),
            r"is both mask and pad; name a token as the",
        ),
        ("pretrained.model.shift=2", r"pretrained\.model\.shift"),
        ("pretrained.model.objective='next token'", r"shift = 1 is of 'masked diffusion', not of 'next token'"),
        ("pretrained.model.objective='masked language model'", r"not of 'masked language model'"),
        ("pretrained.model.remote_code=True", r"remote_code is True, and the backbone stage is to train the model"),
        ("pretrained.model.trunk_bits=8", r"trunk_bits is 8, and the backbone stage is to train|bitsandbytes"),
        ("BACKBONE_TRAINS=[]", r"backbone\.run\.unfreeze names nothing to train"),
        ("BACKBONE_TRAINS=['model.model.layers.9']", r"no module matches 'model\.model\.layers\.9'"),
    ],
)
def test_configure_refuses_what_cannot_be_adapted_in_one_line(inside, monkeypatch, capsys, setting, message):
    monkeypatch.setenv("SLOTLOOP_RAW", str(inside / "raw"))
    assert main(["configure", "--plan", "--peak=1", "BACKBONE_LR=1e-4", setting]) != 0
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and "\n" not in error and "Traceback" not in error
