"""Where states come from: shards or the live trunk, the same batches, and nothing that belongs to another backbone."""

from dataclasses import replace

import pytest
import torch

from components.masking import exact_count
from components.tiny_lm import TinyLM
from pipeline import sources
from pipeline.backbones import Backbone, save_backbone
from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from pipeline.prepared import Prepared, write
from stages import extract
from stages.__main__ import main

DATA = {"masking": exact_count, "seed": 0}


@pytest.fixture
def backbone(finished):
    return Backbone(finished / "data/backbone")


@pytest.fixture
def other(finished, tmp_path):
    """Another backbone of the same sizes."""
    first = Backbone(finished / "data/backbone")
    model = TinyLM(**first.architecture)
    model.init_weights(torch.Generator().manual_seed(5))
    save_backbone(tmp_path / "other", model, first.vocabulary)
    return Backbone(tmp_path / "other")


@pytest.fixture
def resized(finished, tmp_path):
    """The prepared examples under another vocabulary."""
    data = Prepared(finished / "data/prepared")
    changed = replace(data.vocabulary, size=7, mask_id=6)
    write(tmp_path / "resized", changed, {name: data.split(name) for name in ("train", "validation")}, {})
    return str(tmp_path / "resized")


def test_shards_of_this_backbone_are_opened(finished, backbone):
    source = sources.cached("train", backbone=backbone, shards=str(finished / "data/shards"), window=100)
    assert len(source) == 300 and source.layer == 1 and source.draws == 2


def test_shards_of_another_backbone_are_refused(finished, backbone, other):
    message = rf"belongs to backbone {backbone.fingerprint[:12]}, but .*other holds {other.fingerprint[:12]}; run dvc repro extract"
    with pytest.raises(DataError, match=message):
        sources.cached("train", backbone=other, shards=str(finished / "data/shards"), window=100)


@pytest.mark.parametrize("source", [sources.tokens, sources.live])
def test_data_with_other_token_ids_is_refused_with_both_values(backbone, resized, source):
    more = {"tail_layers": 1} if source is sources.live else {}
    with pytest.raises(DataError, match=r"size 7 instead of 5, mask_id 6 instead of 4 than the backbone"):
        source("train", backbone=backbone, prepared=resized, **DATA, **more)


def test_extract_refuses_data_with_other_token_ids(copy_of, resized, runtime):
    with pytest.raises(DataError, match=r"size 7 instead of 5, mask_id 6 instead of 4 than the backbone"):
        extract.run(
            out=str(copy_of / "elsewhere"), prepared=resized, backbone=str(copy_of / "data/backbone"), masking=exact_count,
            tail_layers=1, draws=1, dtype="fp32", batch_size=50, shard_examples=100, seed=0, runtime=runtime,
        )  # fmt: skip
    assert not (copy_of / "elsewhere").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_tokens_come_without_states_and_with_the_masks_of_the_live_source(finished, backbone, split):
    prepared = str(finished / "data/prepared")
    tokens = sources.tokens(split, backbone=backbone, prepared=prepared, **DATA)
    live = sources.live(split, backbone=backbone, prepared=prepared, tail_layers=1, **DATA)
    for epoch in (0, 1):
        a, b = next(tokens.epoch(epoch, 20, None)), next(live.epoch(epoch, 20, None))
        assert a.hidden is None and b.hidden is not None
        assert torch.equal(a.masked, b.masked) and torch.equal(a.tokens, b.tokens)


def test_training_masks_change_with_the_epoch_and_validation_masks_do_not(finished, backbone):
    changed = {}
    for split in ("train", "validation"):
        source = sources.tokens(split, backbone=backbone, prepared=str(finished / "data/prepared"), **DATA)
        first, second = (next(source.epoch(epoch, 20, None)) for epoch in (0, 1))
        changed[split] = not torch.equal(first.masked, second.masked)
    assert changed == {"train": True, "validation": False}


@pytest.mark.parametrize("tail", [0, 1, 2])
def test_live_states_enter_the_layer_below_the_tail(finished, backbone, tail):
    source = sources.live("train", backbone=backbone, prepared=str(finished / "data/prepared"), tail_layers=tail, **DATA)
    batch = next(source.epoch(0, 10, None))
    assert source.layer == 2 - tail
    assert torch.equal(batch.hidden, backbone.model().eval().trunk(batch.tokens, None, 2 - tail))
    assert not batch.hidden.requires_grad


def test_live_states_are_rounded_as_stored_ones(finished, backbone):
    batch = next(
        sources.live(
            "train", backbone=backbone, prepared=str(finished / "data/prepared"), tail_layers=1, dtype="bf16", **DATA
        ).epoch(0, 10, None)
    )
    assert batch.hidden.dtype == torch.bfloat16


@pytest.mark.xfail(
    strict=True, reason="sources.live does not go through split_layer: layer -1, and a traceback when the tail is built"
)
def test_a_live_tail_longer_than_the_backbone_is_refused(finished, backbone):
    with pytest.raises((DataError, ValueError), match="tail"):
        sources.live("train", backbone=backbone, prepared=str(finished / "data/prepared"), tail_layers=3, **DATA)


def test_an_index_of_another_backbone_stops_warmup(copy_of, monkeypatch, capsys):
    index = read_json(copy_of / "data/shards/index.json", "extract")
    write_json(copy_of / "data/shards/index.json", {**index, "backbone": "a" * 64})
    monkeypatch.chdir(copy_of)
    assert main(["warmup"]) == 1
    torch.use_deterministic_algorithms(False)
    fingerprint = Backbone("data/backbone").fingerprint[:12]
    assert f"error: data/shards belongs to backbone aaaaaaaaaaaa, but data/backbone holds {fingerprint};" in capsys.readouterr().err
    assert not (copy_of / "runs").exists()
