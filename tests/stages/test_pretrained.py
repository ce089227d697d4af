"""Every phase over a pretrained model, shaped as LLaDA is and tiny: by the preset of the 8 B one, its sizes overridden."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.batch import Batch
from components.objective.objective import Objective
from pipeline.command_line import SECTIONS
from pipeline.errors import DataError
from pipeline.inference.generation import Generator
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.planning import plan as planning
from pipeline.settings import config, params
from pipeline.text import tokenizer as bpe
from pipeline.training import flops
from stages.__main__ import main
from tests.conftest import ROOT, TRAINING
from tests.support.checkpoints import LAYOUTS, VOCAB, written
from tests.support.optional import needs
from tests.support.over_checkpoint import run_over

needs("transformers", "peft")

SPECIAL = {"mask": "<mask>", "end": "<end>", "pad": "<pad>"}
BINDINGS = {
    "MEASURES": {"mask_30": ["test", 0.3]}, "DECODES": {"mask_30": ["test", 2, 1, 4]},
    "jsonl.QuestionAnswers": {"special": SPECIAL},
    "answers.Answers": {"items": 2, "passes": 3}, "likelihood.Likelihood": {"items": 4, "samples": 2},
}  # fmt: skip


def checkpoint_of(layout, change=lambda config, shapes: (config, shapes)):
    """``written`` with a vocabulary of the tokenizer's size, after a ``change``."""

    def put(folder, encoding):
        config, weights = LAYOUTS[layout]
        sizes = {"vocab_size": encoding.size, "max_position_embeddings": 64}
        if layout == "llada":
            sizes = {"vocab_size": encoding.size, "embedding_size": encoding.size, "max_sequence_length": 64}
        shapes = {name: (encoding.size, *shape[1:]) if shape[0] == VOCAB else shape for name, shape in weights().items()}
        written(folder, *change({**config, **sizes}, shapes))
        bpe.save(encoding.tokenizer, folder / "tokenizer.json")

    return put


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    on = {"REFINER_LORA_FIT": "@with_refiner/loop.fit"}
    return run_over(folder, "gsm8k_llada", checkpoint_of("llada"), ("configure", *TRAINING), {**BINDINGS, **on})


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["llada_moe", "dream"])
def test_its_kin_go_the_same_way(tmp_path, layout):
    folder = run_over(tmp_path / "run", f"gsm8k_{layout}", checkpoint_of(layout), ("configure", *TRAINING), BINDINGS)
    evaluated = json.loads((folder / "outputs/evaluate/metrics.json").read_text())["models"]
    assert {"frozen", "warmup", "joint"} <= set(evaluated) and evaluated["joint"]["nll"] != evaluated["warmup"]["nll"]
    adapted = json.loads((folder / "outputs/controls/optional/lora/metrics.json").read_text())["lora"]
    assert (
        adapted["layers"] == 3 * {"llada_moe": 4, "dream": 7}[layout]
        and evaluated["control_lora"]["nll"] != evaluated["frozen"]["nll"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_half_precision_every_phase_trains_float32_and_what_uses_them_runs(tmp_path, monkeypatch, precision):
    half = {"pretrained": {"model": {"path": "checkpoint", "dtype": "bf16"}}, "finetune.run.steps": 2, "PRECISION": precision}
    settings = {**BINDINGS, **half, "joint.run.layer_norms": True}
    folder = run_over(tmp_path / "run", "gsm8k_llada", checkpoint_of("llada"), ("configure", *TRAINING), settings)
    monkeypatch.chdir(folder)
    trained = {"warmup": 0, "joint": 10, "finetune": 30, "controls/backbone": 30, "controls/warmup": 0}  # of the backbone's weights
    for phase, count in trained.items():
        stored = load_file(folder / f"outputs/{phase}/model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.float32}
        assert sum(name.startswith("backbone.") for name in stored) == count, phase
    assert main(["export", "--out=exported"]) == 0
    assert Generator("exported", length=6)(QUESTIONS) == Generator("outputs/joint", length=6)(QUESTIONS)


def test_the_backbone_is_described_and_not_copied(inside):
    description = json.loads((inside / "data/backbone/model.json").read_text())
    assert not (inside / "data/backbone/model.safetensors").exists()
    assert set(description["files"]) == {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert description["selfcheck"]["split"] == 0 and not description["selfcheck"]["causal"]


def test_every_phase_trains(inside):
    for phase, steps in (("warmup", 4), ("joint", 3)):
        metrics = json.loads((inside / f"outputs/{phase}/metrics.json").read_text())
        assert metrics["steps"] == steps and metrics["flops"] > 0
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]
    assert {"frozen", "warmup", "joint", "control_warmup", "control_backbone"} <= set(evaluated)
    assert (inside / "outputs/report/report.md").is_file()


def metrics_of(folder):
    return json.loads((Path("outputs") / folder / "metrics.json").read_text())


def test_adapters_are_a_control_of_equal_compute_and_parameters(inside):
    phases = {name: metrics_of(name) for name in ("warmup", "joint", "controls/optional/lora")}
    spent = phases["warmup"]["flops"] + phases["joint"]["flops"]
    control, refiner = phases["controls/optional/lora"], phases["warmup"]["parameters"]["trainable"]
    assert abs(control["flops"] - spent) <= control["flops_per_step"] / 2
    each = 3 * (4 * 2 * 16 + 3 * (16 + 24))  # parameters of a rank: four square matrices of a layer, three of its MLP
    nearest = min(range(1, 17), key=lambda rank: abs(rank * each - refiner))
    assert control["lora"] == {
        "rank": nearest, "alpha": 32.0, "layers": 21, "parameters": nearest * each, "compared_with": refiner
    }  # fmt: skip
    assert control["parameters"]["trainable"] == nearest * each
    backbone = Backbone("data/backbone")
    before, after = backbone.model().state_dict(), load_model("outputs/controls/optional/lora", backbone, "controls").state_dict()
    ranks = {name: torch.linalg.matrix_rank((after[name] - before[name]).double(), atol=1e-6) for name in before
             if not torch.equal(after[name], before[name])}  # fmt: skip
    assert list(after) == list(before) and len(ranks) == 21 and max(ranks.values()) == nearest


def test_adapters_are_evaluated_and_reported_beside_the_other_controls(inside):
    evaluated = metrics_of("evaluate")
    assert len({evaluated["models"][name]["nll"]["mean"] for name in ("frozen", "control_backbone", "control_lora")}) == 3
    assert {"joint - control_lora", "warmup - control_lora"} <= set(evaluated["differences"])
    page, numbers = (inside / "outputs/report/report.md").read_text(), metrics_of("controls/optional/lora")["lora"]
    assert f"{numbers['parameters']:,} parameters (rank {numbers['rank']}) where warmup trains" in page.replace("\n", " ")
    assert "\n- joint - control_lora: " in page and "| control_lora " in (inside / "outputs/report/table.md").read_text()


def test_refiner_and_adapters_together_are_evaluated_reported_and_answer(inside):
    control, compared = metrics_of("controls/optional/refiner_lora"), metrics_of("evaluate")
    assert abs(control["flops"] - metrics_of("joint")["flops"]) <= control["flops_per_step"] / 2
    assert {"joint - control_refiner_lora", "control_refiner_lora - control_lora"} <= set(compared["differences"])
    assert len(compared["models"]["control_refiner_lora"]["nll_by_step"]) == 2
    page = (inside / "outputs/report/report.md").read_text()
    assert f"{control['lora']['parameters']:,} parameters (rank {control['lora']['rank']}), for joint's compute" in page
    assert Generator("outputs/controls/optional/refiner_lora", length=6)(QUESTIONS[0]).evaluations >= 1


def test_the_control_of_adapters_is_exported_and_answers_without_peft(inside, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    answer = Generator("outputs/controls/optional/lora", length=6)(QUESTIONS[0])
    assert main(["export", "--model=outputs/controls/optional/lora", "--out=alone"]) == 0
    assert Generator("alone", length=6)(QUESTIONS[0]).text == answer.text and 1 <= answer.evaluations <= 6


def test_what_was_planned_is_what_was_done(inside):
    found = {
        cost.stage: cost for cost in planning.plan(config.resolve_all(SECTIONS, params.read(Path("params.yaml"), SECTIONS))).costs
    }
    told = [metrics_of(f"controls/{name}") for name in ("backbone", "warmup", "optional/lora", "optional/refiner_lora")]
    half_steps = sum(run["flops_per_step"] for run in told) / 2
    assert abs(found["controls"].flops - sum(run["flops"] for run in told)) <= half_steps
    assert found["controls"].trained == sum(run["parameters"]["trainable"] for run in told)
    linear = 3 * (4 * 16 * 16 + 3 * 16 * 24)  # merged weights of the adapted layers are the control's own
    whole = told[0]["parameters"]["total"]
    own = 3 * metrics_of("warmup")["parameters"]["trainable"] + metrics_of("joint")["parameters"]["trainable"]
    assert (
        found["evaluate"].loaded == 2 * whole + own + linear + linear // 3
    )  # beside a refiner they are in the last layer of three
    for phase in ("warmup", "joint"):
        metrics, cost = json.loads((inside / f"outputs/{phase}/metrics.json").read_text()), found[phase]
        assert (cost.flops_per_step, cost.flops) == (metrics["flops_per_step"], metrics["flops_per_step"] * metrics["steps"])
        assert (cost.loaded, cost.trained) == (metrics["parameters"]["total"], metrics["parameters"]["trainable"])
    stored = json.loads((inside / "data/shards/metrics.json").read_text())
    assert found["extract"].disk == stored["tokens"] * (16 * 4 + 13) < stored["bytes"]


def test_joint_changes_the_last_layer_alone(inside):
    backbone = Backbone("data/backbone")
    before, after = backbone.model(), load_model("outputs/joint", backbone, "joint").backbone
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed and all(name.startswith("model.model.layers.2.") for name in changed)


def test_answers_are_padded_with_ends_that_are_learned(inside):
    from pipeline.corpora.prepared import Prepared

    split = Prepared("data/prepared").split("train")
    end = bpe.pretrained(bpe.load(inside / "checkpoint/tokenizer.json"), "checkpoint", SPECIAL).id("end")
    assert split.valid is None and bool(split.response[:, -1].all()) and bool((split.tokens[:, -1] == end).all())


QUESTIONS = ["What is 3 + 4?", "What is 11 + 12? And why?"]


@pytest.fixture
def exported(inside):
    """The joint model, exported, its checkpoint with a card."""
    (inside / "checkpoint/README.md").write_text("---\nlicense: mit\n---\nTiny.\n")
    assert main(["export", "--out=exported"]) == 0
    yield inside / "exported"
    shutil.rmtree(inside / "exported")
    (inside / "checkpoint/README.md").unlink()


def test_it_answers_prompts(inside, capsys):
    (inside / "questions.txt").write_text("\n".join(QUESTIONS))
    assert main(["generate", "--prompts=questions.txt", "generation.Generator.length=6"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == QUESTIONS and all(1 <= line["evaluations"] <= 6 for line in lines)
    generator = Generator("outputs/joint", length=6)
    for line in lines:
        assert generator(line["prompt"]).text == line["text"]  # alone and unpadded, as beside a longer one
    assert SPECIAL["end"] not in lines[0]["text"] and SPECIAL["mask"] not in lines[0]["text"]


def test_an_exported_model_names_its_backbone_and_says_the_same(exported):
    assert {p.name for p in (exported / "backbone").iterdir()} == {"model.json"}
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: slotloop\nlicense: mit\nbase_model: checkpoint\n---\n")
    description = json.loads((exported / "backbone/model.json").read_text())
    assert description["fingerprint"] in card and all(one["sha256"] in card for one in description["files"].values())
    one, other = Generator(exported, length=6), Generator("outputs/joint", length=6)
    assert one(QUESTIONS) == other(QUESTIONS)


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors"])
def test_an_exported_model_notices_that_its_backbone_changed(exported, inside, name):
    file = inside / "checkpoint" / name
    kept = file.read_bytes()
    try:
        file.write_bytes(kept[:-9] + b" " + kept[-8:])  # as long as before
        with pytest.raises(DataError, match=r"the files of checkpoint are not those that .*exported was made with"):
            Generator(exported)
    finally:
        file.write_bytes(kept)


def test_the_operations_of_padded_sequences_are_told_while_it_trains(inside):
    model = load_model("outputs/joint", Backbone("data/backbone"), "joint")
    tokens = torch.zeros(2, 8, dtype=torch.long)
    masked = torch.arange(8).expand(2, 8) < 3
    padded = torch.arange(8) < torch.tensor([[8], [5]])
    batches = [Batch(tokens, tokens, masked, masked.float(), attention) for attention in (padded, None)]
    found = [flops.of_gradient(model, Objective(4), batch) for batch in batches]
    assert found[0] == found[1] > 0


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
