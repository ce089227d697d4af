"""Every phase over a pretrained model, shaped as LLaDA is and tiny: by the preset of the 8 B one, its sizes overridden."""

import json

import pytest
import torch

from pipeline import tokenizer as bpe
from pipeline.backbones import Backbone
from pipeline.checkpoint import load_model
from pipeline.errors import DataError
from tests.conftest import ROOT, TRAINING, run_stages, workspace
from tests.pipeline.checkpoints import LLADA, llada_weights, written

pytest.importorskip("transformers")

SPECIAL = {"mask": "<mask>", "end": "<end>", "pad": "<pad>"}
SETTINGS = """preset: gsm8k_llada
common:
  bindings:
    DEVICE: cpu
    PRECISION: fp32
    STATE_DTYPE: fp32
    HEADS: 2
    TAIL_LAYERS: 1
    EXTRACT_BATCH: 8
    ACCUMULATION: 1
    WARMUP_STEPS: 4
    JOINT_STEPS: 3
    VALIDATE_EVERY: 2
    THREADS: 1
    MEASURES: {mask_30: [test, 0.3]}
    DECODES: {mask_30: [test, 2, 1, 4]}
    pretrained: {model: {path: checkpoint, dtype: fp32}}
    jsonl.QuestionAnswers:
      tokenizer: checkpoint
      special: {mask: <mask>, end: <end>, pad: <pad>}
      sequence: 48
      validation: 0.3
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage."""
    folder = workspace(tmp_path_factory.mktemp("pretrained") / "run", "gsm8k_llada")
    raw = folder / "raw" / "gsm8k"
    raw.mkdir(parents=True)
    for name, n in (("train", 24), ("test", 6)):
        lines = [{"question": f"What is {i} + {i + 1}?", "answer": f"{i} + {i + 1} = {2 * i + 1}"} for i in range(n)]
        (raw / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    encoding = bpe.trained((f"What is {i} + {i + 1}? = {2 * i + 1}" for i in range(24)), 300)
    (folder / "checkpoint").mkdir()
    sizes = {**LLADA, "vocab_size": encoding.size, "embedding_size": encoding.size, "max_sequence_length": 64}
    vocab = {name: (encoding.size, *shape[1:]) if "wte" in name or (name.count(".") == 3 and "ff_out" in name) else shape
             for name, shape in llada_weights().items()}  # fmt: skip
    written(folder / "checkpoint", sizes, vocab)
    bpe.save(encoding.tokenizer, folder / "checkpoint" / "tokenizer.json")
    (folder / "params.yaml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
        run_stages(folder, ("configure", *TRAINING))
    return folder


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
    end = bpe.pretrained(inside / "checkpoint/tokenizer.json", SPECIAL).id("end")
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
