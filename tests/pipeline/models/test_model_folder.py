"""A model's folder: what ``model.json`` says, read once, and folders that hold none."""

import json

import pytest

from pipeline.errors import DataError
from pipeline.inference.exported import load_inference_model
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.models.model_folder import ModelFolder
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

    def counted(self, path, stage):
        stages.append(stage)
        once(self, path, stage)

    monkeypatch.setattr(ModelFolder, "__init__", counted)
    load_inference_model(trained / model, trained / "data/backbone", trained / "data/prepared")
    assert stages == parsed


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_what_describes_no_model_is_refused(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(DataError, match=r"model.json does not describe a model; run dvc repro warmup"):
        ModelFolder(tmp_path, "warmup")


def test_a_folder_without_a_model_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(DataError, match=r"model.json does not exist; it is written by stage joint: run dvc repro joint"):
        ModelFolder(tmp_path, "joint")
