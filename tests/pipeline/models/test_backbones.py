"""A backbone on disk: exact round trips, its tail alone, damage, and data that speaks of other token ids."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from pipeline.errors import DataError
from pipeline.models.backbones import Backbone, save_backbone


@pytest.fixture
def model():
    lm = TinyLM(vocab=102, seq=6, dim=8, layers=3, heads=2)
    lm.init_weights(torch.Generator().manual_seed(0))
    return lm


@pytest.fixture
def backbone(tmp_path, model, vocabulary):
    save_backbone(tmp_path / "backbone", model, vocabulary)
    return Backbone(tmp_path / "backbone")


def test_weights_and_sizes_come_back_exactly(backbone, model, vocabulary):
    loaded = backbone.model()
    assert loaded.architecture == model.architecture == backbone.architecture and backbone.vocabulary == vocabulary
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert set(backbone.model().state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_tail_holds_no_layer_below_it(backbone, model, first):
    tail = backbone.model(first)
    assert sorted(tail.blocks) == [str(i) for i in range(first, 3)] and tail.first_layer == first
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in tail.state_dict().items())


def test_the_fingerprint_is_that_of_the_weights(backbone, model, vocabulary, tmp_path):
    save_backbone(tmp_path / "again", model, vocabulary)
    assert Backbone(tmp_path / "again").fingerprint == backbone.fingerprint
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-3
    save_backbone(tmp_path / "other", model, vocabulary)
    assert Backbone(tmp_path / "other").fingerprint != backbone.fingerprint


@pytest.mark.parametrize("position", [3, 500, -1])
def test_damaged_weights_are_refused(backbone, position):
    file = backbone.folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"model.safetensors is damaged: sha256 .* run dvc repro backbone"):
        Backbone(backbone.folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.json", r"model.json does not exist; it is written by stage backbone: run dvc repro backbone"),
        ("model.safetensors", r"model.safetensors is listed in the manifest but does not exist; run dvc repro backbone"),
    ],
)
def test_a_missing_file_names_the_stage(backbone, file, message):
    (backbone.folder / file).unlink()
    with pytest.raises(DataError, match=message):
        Backbone(backbone.folder)


def test_its_own_vocabulary_and_fingerprint_pass(backbone, vocabulary):
    backbone.check(vocabulary, Path("data"))
    backbone.check_fingerprint(backbone.fingerprint, Path("data/shards"), "extract")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": 9}, "sequence 9 instead of 6"),
        ({"size": 50, "mask_id": 48}, "size 50 instead of 102, mask_id 48 instead of 100"),
        ({"rendering": "sudoku"}, "rendering sudoku instead of text"),
    ],
)
def test_another_vocabulary_is_refused_with_both_values(backbone, vocabulary, changes, message):
    with pytest.raises(DataError, match=rf"data/prepared was made with {message} than the backbone in .*; run dvc repro backbone"):
        backbone.check(replace(vocabulary, **changes), Path("data/prepared"))


def test_another_backbone_is_refused_with_both_fingerprints(backbone):
    message = rf"data/shards belongs to backbone aaaaaaaaaaaa, but .* holds {backbone.fingerprint[:12]}; run dvc repro extract"
    with pytest.raises(DataError, match=message):
        backbone.check_fingerprint("a" * 64, Path("data/shards"), "extract")
