"""Every phase over a pretrained model, shaped as LLaDA is and tiny: by the preset of the 8 B one, its sizes overridden."""

import json

import pytest
import torch

from pipeline import tokenizer as bpe
from pipeline.backbones import Backbone
from pipeline.checkpoint import load_model
from pipeline.errors import DataError
from tests.conftest import ROOT, TRAINING
from tests.pipeline.checkpoints import LAYOUTS, VOCAB, written
from tests.stages.over_checkpoint import run_over

pytest.importorskip("transformers")

SPECIAL = {"mask": "<mask>", "end": "<end>", "pad": "<pad>"}
BINDINGS = {
    "MEASURES": {"mask_30": ["test", 0.3]}, "DECODES": {"mask_30": ["test", 2, 1, 4]}, "jsonl.QuestionAnswers": {"special": SPECIAL}
}  # fmt: skip


def checkpoint_of(layout):
    """``written`` with a vocabulary of the tokenizer's size."""

    def put(folder, encoding):
        config, weights = LAYOUTS[layout]
        sizes = {"vocab_size": encoding.size, "max_position_embeddings": 64}
        if layout == "llada":
            sizes = {"vocab_size": encoding.size, "embedding_size": encoding.size, "max_sequence_length": 64}
        shapes = {name: (encoding.size, *shape[1:]) if shape[0] == VOCAB else shape for name, shape in weights().items()}
        written(folder, {**config, **sizes}, shapes)
        bpe.save(encoding.tokenizer, folder / "tokenizer.json")

    return put


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    return run_over(folder, "gsm8k_llada", checkpoint_of("llada"), ("configure", *TRAINING), BINDINGS)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["llada_moe", "dream"])
def test_its_kin_go_the_same_way(tmp_path, layout):
    folder = run_over(tmp_path / "run", f"gsm8k_{layout}", checkpoint_of(layout), ("configure", *TRAINING), BINDINGS)
    evaluated = json.loads((folder / "outputs/evaluate/metrics.json").read_text())
    assert {"frozen", "warmup", "joint"} <= set(evaluated) and evaluated["joint"]["nll"] != evaluated["warmup"]["nll"]


@pytest.fixture
def inside(finished, monkeypatch):
    monkeypatch.chdir(finished)
    return finished


def test_the_backbone_is_described_and_not_copied(inside):
    description = json.loads((inside / "data/backbone/model.json").read_text())
    assert not (inside / "data/backbone/model.safetensors").exists()
    assert set(description["files"]) == {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert description["selfcheck"]["split"] == 0 and not description["selfcheck"]["causal"]


def test_every_phase_trains(inside):
    for phase, steps in (("warmup", 4), ("joint", 3)):
        metrics = json.loads((inside / f"outputs/{phase}/metrics.json").read_text())
        assert metrics["steps"] == steps and metrics["flops"] > 0
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())
    assert {"frozen", "warmup", "joint", "control_warmup", "control_backbone"} <= set(evaluated)
    assert (inside / "outputs/report/report.md").is_file()


def test_joint_changes_the_last_layer_alone(inside):
    backbone = Backbone("data/backbone")
    before, after = backbone.model(), load_model("outputs/joint", backbone, "joint").backbone
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed and all(name.startswith("model.model.layers.2.") for name in changed)


def test_answers_are_padded_with_ends_that_are_learned(inside):
    from pipeline.prepared import Prepared

    split = Prepared("data/prepared").split("train")
    end = bpe.pretrained(bpe.load(inside / "checkpoint/tokenizer.json"), "checkpoint", SPECIAL).id("end")
    assert split.valid is None and bool(split.response[:, -1].all()) and bool((split.tokens[:, -1] == end).all())


def test_files_that_are_no_longer_what_they_were_are_refused(inside):
    weights = inside / "checkpoint/model-00001-of-00002.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4])
        with pytest.raises(DataError, match=r"has [\d,]+ bytes, not [\d,]+: .*dvc repro --force backbone"):
            Backbone("data/backbone").model()
    finally:
        weights.write_bytes(kept)
    assert (ROOT / "gin/presets/gsm8k_llada.gin").is_file()
