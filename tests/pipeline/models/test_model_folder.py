"""A model's folder: what ``model.json`` says, read once, and folders that hold none."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.inference.exported import load_inference_model
from pipeline.manifests import write_manifest
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.models.model_folder import UNFINISHED, ModelFolder, check_weights, phase_at, phase_folder, seal
from tests.support.trained import puzzles


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return puzzles(tmp_path_factory.mktemp("trained"))


def test_it_says_what_lies_there(trained):
    for name, kind in (("data/backbone", "backbone"), ("outputs/joint", "refined")):
        folder = ModelFolder(trained / name, "any")
        assert folder.kind == kind and folder.description == json.loads((trained / name / "model.json").read_text())
        assert folder.weights.is_file()


def test_backbone_and_model_open_from_it_as_from_their_paths(trained):
    backbone = Backbone(ModelFolder(trained / "data/backbone", "backbone"))
    assert backbone.fingerprint == Backbone(trained / "data/backbone").fingerprint and backbone.folder == trained / "data/backbone"
    one = load_model(ModelFolder(trained / "outputs/joint", "joint"), backbone, "joint").state_dict()
    other = load_model(trained / "outputs/joint", backbone, "joint").state_dict()
    assert all(bool((one[name] == other[name]).all()) for name in one.keys() | other.keys())


@pytest.mark.parametrize(("model", "parsed"), [("outputs/joint", ["joint", "backbone"]), ("data/backbone", ["backbone"])])
def test_a_description_is_read_once(trained, monkeypatch, model, parsed):
    stages = []
    once = ModelFolder.__init__

    def counted(self, path, stage, phase=None):
        stages.append(stage)
        once(self, path, stage, phase)

    monkeypatch.setattr(ModelFolder, "__init__", counted)
    load_inference_model(trained / model, trained / "data/backbone", trained / "data/prepared")
    assert stages == parsed


@pytest.mark.parametrize("content", [{}, {"stage": "warmup"}, {"kinds": 3}])
def test_what_describes_no_model_is_refused(tmp_path, content):
    write_manifest(tmp_path / "model.json", content)
    with pytest.raises(DataError, match=r"model.json does not describe a model; run dvc repro warmup"):
        ModelFolder(tmp_path, "warmup")


def test_a_folder_without_a_model_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(DataError, match=r"model.json does not exist; it is written by stage joint: run dvc repro joint"):
        ModelFolder(tmp_path, "joint")


PLACES = [
    ("data/backbone", "backbone"), ("outputs/joint", "joint"), ("/any/outputs/controls/warmup", "controls/warmup"),
    ("outputs/controls/backbone", "controls/backbone"), ("backbone", None), ("outputs/mine", None), ("runs/joint", None),
    ("outputs/joint/backbone", None), ("", None), ("outputs/controls/optional/lora", "controls/optional/lora"),
    ("/any/outputs/controls/optional/adapter", "controls/optional/adapter"), ("outputs/optional/lora", None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "phase"), PLACES)
def test_a_place_of_the_pipeline_says_whose_it_is(path, phase):
    assert phase_at(Path(path)) == phase


def test_a_model_of_another_phase_is_refused_where_a_phase_is_known(trained, tmp_path):
    folder = shutil.copytree(trained / "outputs/joint", tmp_path / "outputs/joint")
    write_json(folder / "metrics.json", {"steps": 1})
    seal(folder, "controls/warmup", {"extract": "e" * 64})
    for read in (lambda: phase_folder("joint", folder), lambda: load_inference_model(folder, Path(), Path())):
        with pytest.raises(DataError, match="is what controls/warmup wrote, expected what joint writes; run dvc repro joint"):
            read()
    assert phase_folder("mine", folder).metrics() == phase_folder("control_warmup", folder).metrics() == {"steps": 1}
    assert phase_folder("control_warmup", folder).manifest.inputs["extract"] == "e" * 64


def test_the_folder_of_a_phase_that_did_not_finish_is_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "t")
    for name in ("outputs/joint", "data/backbone"):
        (tmp_path / "t" / name / UNFINISHED).touch()
        with pytest.raises(DataError, match=r"is of a phase that did not finish .*run it again.*dvc repro joint$"):
            ModelFolder(tmp_path / "t" / name, "joint")


def test_weights_are_all_there_and_finite():
    weights = {"a": torch.ones(2), "b": torch.tensor([1, 2])}
    check_weights(weights, ["a"], Path("file"), "joint")
    with pytest.raises(DataError, match="file lacks 2 weights of the model, 'c' first; run dvc repro joint"):
        check_weights(weights, ["a", "d", "c"], Path("file"), "joint")
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(DataError, match="file: weight 'a' holds numbers that are not finite"):
            check_weights(weights | {"a": torch.tensor([1.0, bad])}, [], Path("file"), "joint")


def test_a_seal_covers_curves_and_metrics_but_not_the_validations_that_metrics_hold(tmp_path):
    write_manifest(tmp_path / "model.json", {"kind": "refined"})
    for name in ("metrics.json", "curves.csv", "validation.csv"):
        (tmp_path / name).write_text("1\n")
    seal(tmp_path, "warmup", {})
    assert ModelFolder(tmp_path, "warmup").manifest.hashes.keys() == {"metrics.json", "curves.csv"}
