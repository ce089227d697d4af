"""A backbone on disk: exact round trips, its tail alone, damage, and data that speaks of other token ids."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from pipeline.corpora.prepared import Prepared, write
from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.manifests import write_manifest
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


@pytest.fixture
def prepared(tmp_path, rows):
    """``prepared(vocabulary)``: a folder of examples with it, opened."""

    def prepared(vocabulary):
        write(tmp_path / "prepared", vocabulary, {"train": rows(5), "validation": rows(3)}, {})
        return Prepared(tmp_path / "prepared")

    return prepared


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


def test_its_own_vocabulary_and_digest_pass(backbone, vocabulary, prepared):
    backbone.check(prepared(vocabulary))
    backbone.check_over({"backbone": backbone.digest}, Path("data/shards"), "extract")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": 9}, "sequence 9 instead of 6"),
        ({"size": 50, "mask_id": 48}, "size 50 instead of 102, mask_id 48 instead of 100"),
        ({"rendering": "sudoku"}, "rendering sudoku instead of text"),
    ],
)
def test_another_vocabulary_is_refused_with_both_values(backbone, vocabulary, prepared, changes, message):
    with pytest.raises(DataError, match=rf"prepared was made with {message} than the backbone in .*; run dvc repro backbone"):
        backbone.check(prepared(replace(vocabulary, **changes)))


def test_another_backbone_is_refused_with_both_digests(backbone):
    message = rf"data/shards belongs to backbone aaaaaaaaaaaa, but .* holds {backbone.digest[:12]}; run dvc repro extract"
    with pytest.raises(DataError, match=message):
        backbone.check_over({"backbone": "a" * 64}, Path("data/shards"), "extract")


def test_data_that_it_was_not_made_from_are_refused(backbone, vocabulary, prepared):
    data, content = prepared(vocabulary), read_json(backbone.folder / "model.json", "backbone")
    for digest in (data.digest, "a" * 64):
        write_manifest(backbone.folder / "model.json", {**content, "inputs": {"prepare": digest}})
        made = Backbone(backbone.folder)
        if digest == data.digest:
            made.check(data)
            continue
        with pytest.raises(DataError, match=rf"backbone belongs to prepare a{{12}}, but .*prepared holds {data.digest[:12]}; run"):
            made.check(data)


def test_a_model_of_another_kind_is_no_backbone(backbone):
    write_manifest(backbone.folder / "model.json", {**read_json(backbone.folder / "model.json", "backbone"), "kind": "refined"})
    with pytest.raises(DataError, match="holds a model of kind 'refined', not a backbone; run dvc repro backbone"):
        Backbone(backbone.folder)
