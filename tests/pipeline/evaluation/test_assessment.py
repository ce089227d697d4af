"""The evaluation as a whole: what it refuses, and which models and comparisons it holds."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest

from components.inference import breadth as restarting
from components.inference.answers import Answers
from components.inference.halting import by_probability
from components.inference.likelihood import Likelihood
from pipeline.corpora.prepared import Prepared, write
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.assessment import EvalConfig, assess, load_models
from pipeline.evaluation.limited import Limited
from pipeline.manifests import Manifest
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import open_phases
from pipeline.models.model_folder import ModelFolder
from stages.evaluate import run
from tests.conftest import run_stages

MEASURES = {"test_5": ("test_5", 1.0), "half": ("test_7", 0.5)}


@pytest.fixture
def evaluate(finished, runtime, tmp_path):
    def evaluate(models=None, **settings):
        folders = {name: str(finished / "outputs" / name) for name in ("warmup", "joint")} if models is None else models
        settings = {
            "measures": MEASURES,
            "decodes": {},
            "halts": {"probability": by_probability},
            "headline": "test_5",
            "samples": 2,
            "batch_size": 20,
            "seed": 0,
            **settings,
        }
        prepared = settings.pop("prepared", Limited(finished / "data/prepared"))
        assess(prepared, Backbone(finished / "data/backbone"), folders, tmp_path / "out", runtime, EvalConfig(**settings))
        return json.loads((tmp_path / "out/metrics.json").read_text())

    return evaluate


def test_a_headline_that_is_no_measure_is_refused(evaluate, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate.run.headline is 'test_9', which is none of the measures test_5, half"):
        evaluate(headline="test_9")
    assert not (tmp_path / "out").exists()


def test_a_measure_of_an_unknown_split_is_refused(evaluate):
    with pytest.raises(DataError, match=r"has no split 'test_9'; it has test_5, test_7, train, validation"):
        evaluate(measures={**MEASURES, "test_9": ("test_9", 1.0)})


def test_data_with_other_token_ids_is_refused(evaluate, finished, tmp_path):
    data = Prepared(finished / "data/prepared")
    write(tmp_path / "other", replace(data.vocabulary, mask_id=3), {"test_5": data.split("test_5")}, {})
    with pytest.raises(DataError, match="mask_id 3 instead of 4 than the backbone"):
        evaluate(prepared=Limited(tmp_path / "other"))


NAMED = [("joint", "outputs/joint", "joint"), ("control_warmup", "outputs/controls/warmup", "controls"), ("own", "runs/own", "own")]


@pytest.mark.parametrize(("name", "folder", "stage"), NAMED)
def test_a_missing_model_names_its_stage(evaluate, tmp_path, monkeypatch, name, folder, stage):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=rf"{folder}/model.json does not exist; it is written by stage {stage}: run dvc repro {stage}"
    ):
        evaluate(models={name: folder})


def test_the_headline_stands_at_the_top(evaluate):
    metrics = evaluate(headline="half")
    assert metrics["headline"] == "half"
    warmup = metrics["models"]["warmup"]
    assert warmup["nll"] == warmup["half"]["nll"] != warmup["test_5"]["nll"]


def test_only_pairs_of_loaded_models_are_compared(evaluate, finished):
    assert set(evaluate()["differences"]) == {"warmup - frozen", "joint - frozen", "joint - warmup"}
    alone = evaluate(models={"joint": str(finished / "outputs/joint")})
    assert set(alone["differences"]) == {"joint - frozen"} and "warmup" not in alone["models"]


def test_a_phase_that_is_switched_off_is_left_out(evaluate, finished, tmp_path):
    shutil.copytree(finished / "outputs/finetune", tmp_path / "finetune")
    assert "finetune" not in evaluate(models={"finetune": str(tmp_path / "finetune")})["models"]


def test_decodes_use_the_examples_that_were_asked_for(evaluate):
    models = evaluate(decodes={"test_5": ("test_5", 2, 1, 7)})["models"]
    assert models["frozen"]["test_5"]["decode_2"]["exact"]["n"] == 7
    assert not any("decode" in key for key in models["frozen"] | models["frozen"]["half"])


def test_the_batch_size_does_not_change_what_is_measured(evaluate):
    small, large = evaluate(batch_size=7)["models"], evaluate(batch_size=30)["models"]
    for name in ("frozen", "joint"):
        for key in ("exact", "token_accuracy", "nll"):
            assert small[name][key] == pytest.approx(large[name][key], rel=1e-4)


@pytest.mark.parametrize(("asked", "written"), [(3, 3), (1000, 30)])
def test_samples_end_with_the_split(evaluate, tmp_path, asked, written):
    evaluate(samples=asked)
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == written
    trace = json.loads((tmp_path / "out/trace.json").read_text())
    assert len(trace["tokens"]) == len(trace["models"]["joint"]) == written and trace["rendering"] == "sudoku"


def test_the_headlines_masks_are_traced_where_they_leave_some_of_an_answer(evaluate, tmp_path):
    whole, trace = (evaluate(samples=3), json.loads((tmp_path / "out/trace.json").read_text()))
    assert set(trace) == {"rendering", "mask_id", "tokens", "response", "models"} and whole["headline"] == "test_5"
    evaluate(samples=3, headline="half")
    trace = json.loads((tmp_path / "out/trace.json").read_text())
    part = trace["headline"]
    assert part["ratio"] == 0.5 and set(part["models"]) == set(trace["models"])
    for row, masked in enumerate(part["masked"]):
        response = trace["response"][row]
        assert sum(masked) in (sum(response) // 2, sum(response) // 2 + sum(response) % 2) and all(
            r for m, r in zip(masked, response, strict=True) if m
        )
        for steps in (of[row] for of in part["models"].values()):
            kept = [[i for i, m in zip(step["ids"], masked, strict=True) if not m] for step in steps]
            assert kept == [[i for i, m in zip(trace["tokens"][row], masked, strict=True) if not m]] * len(steps)


def test_another_number_of_recursion_steps_is_taken_by_what_recurs(evaluate):
    own, more = evaluate()["models"], evaluate(recursion_steps=6)["models"]
    assert len(own["joint"]["nll_by_step"]) == 4 and len(more["joint"]["nll_by_step"]) == 6
    assert (
        more["joint"]["nll_by_step"][:4] == own["joint"]["nll_by_step"] and more["joint"]["nll"] == more["joint"]["nll_by_step"][5]
    )
    assert more["frozen"] == own["frozen"] and len(more["warmup"]["statistics_by_step"]) == 6


def test_depths_stand_with_what_recurs_whatever_number_of_steps_is_taken(evaluate):
    own, more = evaluate(depths=(2, 8)), evaluate(depths=(2, 8), recursion_steps=1)
    assert [at["steps"] for at in own["models"]["joint"]["depths"]] == [2, 4, 8] and "depths" not in own["models"]["frozen"]
    assert (
        own["models"]["joint"]["depths"] == more["models"]["joint"]["depths"] and len(more["models"]["joint"]["nll_by_step"]) == 1
    )
    trained = own["models"]["joint"]["depths"][1]
    assert trained["trained"] and all(trained[name] == own["models"]["joint"][name] for name in ("nll", "exact", "token_accuracy"))
    assert trained["flops_per_answer"] == own["models"]["joint"]["flops_per_answer"]
    plain = evaluate()["models"]
    without = {name: {k: v for k, v in values.items() if k != "depths"} for name, values in own["models"].items()}
    assert plain == without


def test_restarts_stand_with_what_recurs_beside_all_else(evaluate):
    breadth = partial(
        restarting.Breadth, {"change": restarting.by_change, "surest": restarting.by_probability}, (1, 2, 3), noise=2.0
    )
    metrics, plain = evaluate(breadth=breadth, depths=(2,))["models"], evaluate()["models"]
    assert {name for name, values in metrics.items() if "breadth" in values} == {"warmup", "joint"}
    one, two, three = metrics["joint"]["breadth"]["change"]
    assert all(one[name] == metrics["joint"][name] for name in ("nll", "exact", "token_accuracy", "flops_per_answer"))
    assert three["flops_per_answer"] - two["flops_per_answer"] == two["flops_per_answer"] - one["flops_per_answer"] > 0
    assert [at["restarts"] for at in metrics["joint"]["breadth"]["surest"]] == [1, 2, 3]
    without = {name: {k: v for k, v in values.items() if k not in ("depths", "breadth")} for name, values in metrics.items()}
    assert plain == without


@pytest.mark.parametrize("settings", [{"restarts": (0,)}, {"restarts": ()}, {"noise": -1.0}, {"steps": 1}, {"choices": {}}])
def test_restarts_that_mean_nothing_are_refused_in_one_line(evaluate, settings):
    with pytest.raises(ConfigError, match=r"^evaluate\.run\.breadth: .*got") as error:
        evaluate(breadth=partial(restarting.Breadth, **{"choices": {"change": restarting.by_change}, **settings}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "stated"),
    [
        *(("depths", depths, "at least 1, at most 10000") for depths in ((0,), (4, -8), (1, 10**5), (64, float("nan")))),
        ("recursion_steps", 0, "at least 1, at most 10000"),
        ("samples", 0, "at least 1"),
        ("batch_size", -1, "at least 1"),
        ("limit", 0, "at least 1"),
        *(("measures", {"test_5": ("test_5", fraction)}, "above 0, at most 1") for fraction in (0.0, -0.1, 30, 1.01, float("nan"))),
        *(
            ("decodes", {"test_5": ("test_5", *numbers)}, "at least 1, at most 10000")
            for numbers in ((0, 1, 1), (8, 0, 1), (-8, 1, 1))
        ),
        ("decodes", {"test_5": ("test_5", 8, 1, 0)}, "at least 1"),
        ("forgetting", ("test_5", 15), "above 0, at most 1"),
    ],
)
def test_a_number_outside_the_range_that_the_stage_states_is_refused_from_python_too(name, value, stated):
    settings = {
        "out": "out", "prepared": "nowhere", "backbone": "nowhere", "models": {}, "measures": MEASURES, "decodes": {}, "halts": {},
        "answers": None, "likelihood": None, "forgetting": None, "headline": "test_5", "samples": 2, "recursion_steps": None,
        "depths": (), "breadth": None, "parallelism": None, "batch_size": 20, "seed": 0, "runtime": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=rf"evaluate.run.{name} must be {stated}, got"):
        run(**settings | {name: value})


def test_a_limit_holds_for_everything_and_is_told(evaluate, finished, tmp_path):
    metrics = evaluate(prepared=Limited(finished / "data/prepared", 5), decodes={"test_5": ("test_5", 2, 1, 7)}, samples=9)
    assert metrics["limit"] == 5 and "limit" not in evaluate()
    joint = metrics["models"]["joint"]
    counted = (joint["exact"], joint["half"]["nll"], joint["test_5"]["decode_2"]["exact"], joint["halting"]["probability"]["steps"])
    assert [value["n"] for value in counted] == [5] * 4


def test_samples_end_with_the_limit(evaluate, finished, tmp_path):
    evaluate(prepared=Limited(finished / "data/prepared", 3), samples=9)
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 3


def test_models_share_what_was_not_trained(finished, runtime):
    folders = {name: str(finished / "outputs" / name) for name in ("warmup", "joint")}
    backbone = Backbone(finished / "data/backbone")
    models = load_models(backbone, open_phases(folders, backbone), runtime)
    tensors = {name: dict((getattr(model, "backbone", model)).named_parameters()) for name, model in models.items()}
    frozen, trained = tensors["frozen"], {name for name in tensors["frozen"] if name.startswith("blocks.1.")}
    assert trained and all(tensors["warmup"][name] is frozen[name] for name in frozen)
    assert {name for name in frozen if tensors["joint"][name] is not frozen[name]} == trained


def test_answers_are_asked_for_of_text_alone(evaluate):
    with pytest.raises(ConfigError, match=r"evaluate.run.answers is for text corpora; set ANSWERS: null for this one"):
        evaluate(answers=partial(Answers, items=2, passes=1))


def test_a_setting_out_of_range_is_named(evaluate, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate.run.likelihood: items must be at least 1 and samples at least 2, got 3 and 1"):
        evaluate(likelihood=partial(Likelihood, items=3, samples=1))
    assert not (tmp_path / "out").exists()


def test_the_likelihood_of_whole_answers_stands_with_each_model(evaluate):
    metrics = evaluate(likelihood=partial(Likelihood, items=6, samples=4, split="test_5"))
    frozen, joint = (metrics["models"][name]["likelihood"] for name in ("frozen", "joint"))
    assert frozen["answer_nll"]["n"] == 6 and frozen["samples"] == 4 and len(joint["answer_nll_by_step"]) == 4
    assert frozen["minus_frozen"] == {"answer_nll": {"mean": 0, "low": 0, "high": 0, "n": 6}, "standard_error": 0}
    difference = joint["answer_nll"]["mean"] - frozen["answer_nll"]["mean"]
    assert joint["minus_frozen"]["answer_nll"]["mean"] == pytest.approx(difference) != 0
    assert 0 < joint["minus_frozen"]["standard_error"] != joint["standard_error"] > 0
    assert "likelihood" not in evaluate()["models"]["frozen"]


def test_it_is_a_manifest_of_what_was_evaluated(evaluate, finished, tmp_path):
    evaluate()
    manifest = Manifest(tmp_path / "out/metrics.json", "evaluate", "evaluate")
    assert {manifest.verify(name).name for name in manifest.hashes} == {"samples.jsonl", "trace.json"}
    folders = {name: ModelFolder(finished / "outputs" / name, name) for name in ("warmup", "joint")}
    backbone = Backbone(finished / "data/backbone")
    digests = {name: folder.manifest.digest for name, folder in folders.items()}
    assert manifest.content["evaluated"] == {"frozen": backbone.digest, **digests}
    assert manifest.inputs == {"backbone": backbone.digest, "prepare": Prepared(finished / "data/prepared").digest}


def test_models_that_do_not_belong_together_are_refused(evaluate, copy_of):
    run_stages(copy_of, ("warmup",), "warmup.run.seed=5")
    folders = {name: str(copy_of / "outputs" / name) for name in ("warmup", "joint")}
    with pytest.raises(DataError, match=r"joint belongs to warmup .*, but .*warmup holds .*; run dvc repro joint"):
        evaluate(models=folders)
    mine = evaluate(models={"mine": folders["warmup"], "joint": folders["joint"]})  # whatever is compared with it
    assert set(mine["models"]) == {"frozen", "mine", "joint"}
