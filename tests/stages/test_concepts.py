"""Every stage over sentences, with an encoder shaped as SONAR's and tiny: by the preset of the real one, its sizes overridden."""

import json
import re

import pytest
import torch

from pipeline.corpora.prepared import Prepared, texts
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from tests.conftest import TRAINING, run_stages, workspace
from tests.support.checkpoints import sonar
from tests.support.optional import needs

needs("transformers")

SETTINGS = """preset: concepts_sonar
common:
  bindings:
    DEVICE: cpu
    PRECISION: fp32
    HEADS: 2
    EXTRACT_BATCH: 8
    BATCH: 4
    WARMUP_STEPS: 4
    VALIDATE_EVERY: 2
    THREADS: 1
    EVALUATION_BATCH: 4
    sentence_encoder: {model: {path: checkpoint}}
    sentences: {Documents: {train_documents: 24, test_documents: 6, sequence: 7}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage."""
    folder = workspace(tmp_path_factory.mktemp("concepts") / "run", "concepts_sonar")
    raw = folder / "raw" / "gsm8k"
    raw.mkdir(parents=True)
    for name, n in (("train", 60), ("test", 12)):
        lines = [{"question": f"Ann has {i}. Bob has {i + 1}. " + "And now? " * (i % 3), "answer": f"So {2 * i + 1}.\n#### {i}"}
                 for i in range(n)]  # fmt: skip
        (raw / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "checkpoint").mkdir()
    sonar(folder / "checkpoint")
    (folder / "params.yaml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
        run_stages(folder, ("configure", *TRAINING))
    return folder


@pytest.fixture
def metrics(inside):
    return json.loads((inside / "outputs/evaluate/metrics.json").read_text())


def test_warmup_trains_and_what_cannot_be_trained_is_off(inside):
    found = {name: json.loads((inside / f"outputs/{name}/metrics.json").read_text())
             for name in ("warmup", "joint", "finetune", "controls/backbone", "controls/warmup")}  # fmt: skip
    assert {name: value["steps"] for name, value in found.items()} == {
        "warmup": 4, "joint": 0, "finetune": 0, "controls/backbone": 0, "controls/warmup": 0,
    }  # fmt: skip
    assert found["warmup"]["flops"] > 0 == found["controls/backbone"]["flops"]


def test_joint_hands_on_the_model_of_warmup(inside):
    backbone = Backbone("data/backbone")
    one, other = (load_model(f"outputs/{name}", backbone, name).state_dict() for name in ("warmup", "joint"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert set(one) > {"refiner.confidence.weight", "backbone.head.weight"}


def test_every_model_and_baseline_is_measured_after_every_step(metrics):
    models = metrics["models"]
    assert set(models) == {"frozen", "warmup", "copy_previous", "context_mean"}
    for name in models:
        steps = 4 if name == "warmup" else 1
        for metric in ("cosine", "squared_error", "retrieval_1", "retrieval_5"):
            assert len(models[name][f"{metric}_by_step"]) == steps
            value = models[name][metric]
            assert value == models[name]["next"][metric] and value["low"] <= value["mean"] <= value["high"]
    pairs = {"warmup - frozen", "warmup - copy_previous", "warmup - context_mean"}
    assert set(metrics["differences"]) == pairs
    difference = metrics["differences"]["warmup - frozen"]["next"]["cosine"]["mean"]
    assert difference == pytest.approx(models["warmup"]["cosine"]["mean"] - models["frozen"]["cosine"]["mean"])


def test_the_baselines_are_what_they_are_called(inside, metrics):
    prepared, table = Prepared("data/prepared"), Backbone("data/backbone").model()
    rows, split = table.raw(table.head.weight), prepared.split("test")
    previous, mean = [], []
    for tokens, length in zip(split.tokens.tolist(), split.lengths().tolist(), strict=True):
        for place in range(1, length):
            truth, context = rows[tokens[place]], rows[tokens[:place]]
            previous.append(torch.cosine_similarity(truth, context[-1], dim=0))
            mean.append(torch.cosine_similarity(truth, context.mean(0), dim=0))
    assert metrics["models"]["copy_previous"]["cosine"]["mean"] == pytest.approx(float(torch.stack(previous).mean()), abs=1e-5)
    assert metrics["models"]["context_mean"]["cosine"]["mean"] == pytest.approx(float(torch.stack(mean).mean()), abs=1e-5)
    assert metrics["candidates"]["next"] == len(split.tokens[split.response].unique())


def test_samples_show_what_was_said_in_words(inside):
    held = set(texts(inside / "data/prepared"))
    samples = [json.loads(line) for line in (inside / "outputs/evaluate/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 6 and all({*one["context"], one["truth"]} <= held for one in samples)
    assert all(len(one["models"]["warmup"]) == 4 and set(one["models"]["warmup"]) <= held for one in samples)


def test_the_report_tells_it(inside):
    page = (inside / "outputs/report/report.md").read_text()
    assert re.search(r"\| frozen +\| -?\.\d{3} \[", page) and "## Differences, paired" in page and "| warmup | cosine" in page
    assert all((inside / "outputs/report" / name).is_file() for name in ("losses.png", "steps.png", "slots.png", "table.md"))


def test_what_has_no_meaning_for_sentences_is_refused(inside, capsys):
    from stages.__main__ import main

    assert main(["evaluate", "DECODES={'next': ('test', 2, 1, 4)}"]) == 2
    assert "sentences are predicted one at a time: decodes and halts must be {}" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [("generate", "--prompt", "Ann has 3."), ("export", "--out", "exported")])
def test_what_answers_prompts_is_refused(inside, capsys, asked):
    from stages.__main__ import main

    assert main([*asked, "--model", "outputs/warmup"]) == 2
    assert "predicts embeddings of sentences; only models of tokens answer prompts and are exported" in capsys.readouterr().err


def test_a_limit_is_told(inside, metrics, tmp_path):
    from stages.__main__ import main

    assert main(["evaluate", "--limit", "4", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["limit"] == 4
    assert found["models"]["frozen"]["cosine"]["n"] < metrics["models"]["frozen"]["cosine"]["n"]


def test_the_loss_is_a_choice(inside, tmp_path):
    from stages.__main__ import main

    assert main(["warmup", "LOSS=@losses.cosine_distance", "--out", str(tmp_path)]) == 0
    found, squared = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, inside / "outputs/warmup"))
    assert found["steps"] == 4 and abs(found["best_loss"] - squared["best_loss"]) > 0.01
