"""Whole answers of a text corpus through the stages: generated, judged, their likelihood; killed and continued."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.inference.answers import Answers
from pipeline.corpora.prepared import Prepared
from pipeline.evaluation import answering
from stages.__main__ import main
from tests.conftest import SUMS

TWO = "evaluate.run.models={'joint': 'outputs/joint'}"  # beside the frozen one


@pytest.fixture
def inside(text, monkeypatch, tmp_path):
    monkeypatch.chdir(text)
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return text


def told(folder: Path) -> tuple[dict, list[dict]]:
    """Metrics, and the lines of generated answers."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return json.loads((folder / "metrics.json").read_text()), [line for line in lines if "item" in line]


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_model_is_judged_on_the_same_items(inside):
    metrics, lines = told(inside / "outputs/evaluate")
    models = metrics["models"]
    assert set(models) == {"frozen", "warmup", "joint", "control_backbone", "control_warmup"}
    test = Prepared("data/prepared").split("test")
    assert [line["item"] for line in lines] == test.uid[:8].tolist()
    for line, (question, answer) in zip(lines, SUMS, strict=False):
        assert (line["prompt"], line["reference"]) == (f"{question}\n", answer) and line["expected"] == answer.split()[-1]
        assert set(line["generated"]) == set(models)
        for found in line["generated"].values():
            assert found["right"] == {name: result == line["expected"] for name, result in found["extracted"].items()}
            assert found["extracted"] == Answers(1, 1).extracted(found["text"]) and "<end>" not in found["text"]
    for name in models:
        found = models[name]["answers"]
        assert found["flexible"]["n"] == 8 and found["function_evaluations"] == {"mean": 4, "low": 4, "high": 4, "n": 8}
        right = [line["generated"][name]["right"]["flexible"] for line in lines]
        assert found["flexible"]["mean"] == sum(right) / 8
    assert all("forgetting" in measured for measured in models.values())
    assert "## Forgetting" in (inside / "outputs/report/report.md").read_text()
    assert models["joint"]["answers"]["recursion_steps"] == 4 and models["joint"]["likelihood"]["samples"] == 2


def test_a_model_that_knows_the_answers_is_right(inside, tmp_path, monkeypatch):
    """One that reads them off the batch: strict and flexible, every item."""
    size = Prepared("data/prepared").vocabulary.size

    def known(model, batch, vocabulary, runtime, **_):
        return lambda tokens, queried: torch.nn.functional.one_hot(batch.targets[queried], size).float()

    monkeypatch.setattr(answering, "predictor", known)
    assert main(["evaluate", "evaluate.run.models={}", "--out", str(tmp_path / "out")]) == 0
    metrics, lines = told(tmp_path / "out")
    frozen = metrics["models"]["frozen"]["answers"]
    assert frozen["strict"]["mean"] == frozen["flexible"]["mean"] == 1
    assert {name: value["mean"] for name, value in frozen["exact_match"].items()} == {"strict-match": 1, "flexible-extract": 1}
    assert all(line["generated"]["frozen"]["text"] == line["reference"] for line in lines)


def test_the_batch_size_changes_no_answer_and_no_likelihood(inside, tmp_path):
    assert main(["evaluate", TWO, "evaluate.run.batch_size=5", "--out", str(tmp_path / "out")]) == 0
    (metrics, lines), (expected, reference) = told(tmp_path / "out"), told(inside / "outputs/evaluate")
    assert len(lines) == 8
    for name in ("frozen", "joint"):
        assert [line["generated"][name] for line in lines] == [line["generated"][name] for line in reference]
        for key in ("answer_nll", "answer_nll_per_token"):
            one, other = (found["models"][name]["likelihood"][key] for found in (metrics, expected))
            assert one == pytest.approx(other, rel=1e-5)


def test_answers_of_another_split_in_blocks(inside, tmp_path):
    """Six passes in two blocks write other answers than in one."""
    texts = []
    for blocks in (1, 2):
        own = [f"answers.Answers.{name}" for name in ("split='validation'", "passes=6", f"blocks={blocks}")]
        assert main(["evaluate", "evaluate.run.models={}", *own, "--out", str(tmp_path / f"out{blocks}")]) == 0
        metrics, lines = told(tmp_path / f"out{blocks}")
        assert metrics["models"]["frozen"]["answers"]["function_evaluations"]["mean"] == 6
        assert [line["item"] for line in lines] == Prepared("data/prepared").split("validation").uid.tolist()
        texts.append([line["generated"]["frozen"]["text"] for line in lines])
    assert texts[0] != texts[1]


def test_a_limit_is_told_and_holds_for_answers_too(inside, tmp_path):
    assert main(["evaluate", TWO, "--limit", "5", "--out", str(tmp_path / "out")]) == 0
    metrics, lines = told(tmp_path / "out")
    assert metrics["limit"] == 5 and len(lines) == 5
    joint = metrics["models"]["joint"]
    assert joint["answers"]["strict"]["n"] == joint["likelihood"]["answer_nll"]["n"] == 5


@pytest.mark.parametrize(("until", "finished"), [(1, 1), (20, 14), (35, 31)])
def test_a_killed_evaluation_goes_on_with_finished_batches(inside, monkeypatch, until, finished, tmp_path):
    """Killed in a measure (2 passes, 1 a model), in generating (24, 4 a batch) or in the likelihood (12, 1 a batch): the same
    bytes, and no batch that was finished is computed again. The 4 passes whose operations are counted, after the measures, are.
    """
    calls = {"now": 0, "until": 10**9}
    through = TinyLM.states_and_heads

    def counting(self, batch, layers=()):
        calls["now"] += 1
        if calls["now"] > calls["until"]:
            raise KeyboardInterrupt
        return through(self, batch, layers)

    monkeypatch.setattr(TinyLM, "states_and_heads", counting)
    arguments = ["evaluate", TWO, "MEASURES={'mask_30': ('validation', 0.3)}", "evaluate.run.samples=1"]
    arguments += ["--out", str(out := tmp_path / "out")]
    assert main(arguments) == 0
    whole, uninterrupted = calls["now"], content(out)
    shutil.rmtree(out)
    calls |= {"now": 0, "until": until}
    assert main(arguments) == 130 and not out.exists()
    calls |= {"now": 0, "until": 10**9}
    assert main(arguments) == 0 and content(out) == uninterrupted
    assert calls["now"] == whole - finished and not (tmp_path / "scratch").exists()


def test_the_report_has_their_tables(inside):
    page = (inside / "outputs/report/report.md").read_text()
    assert "## Generated answers" in page and "## Likelihood of whole answers" in page
