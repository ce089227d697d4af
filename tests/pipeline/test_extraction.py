"""Extraction: every example and draw once, the plan in the index, and states that are the trunk's."""

import pytest
import torch

from components.masking import exact_count
from pipeline.backbones import Backbone
from pipeline.data import VALIDATION, Examples
from pipeline.extraction import extract
from pipeline.files import read_json
from pipeline.prepared import Prepared
from pipeline.shards import Shards, concatenate


@pytest.fixture
def extracted(finished, runtime, tmp_path):
    """``extracted(...)``: shards of 70 examples in blocks of 25."""

    def extracted(name="shards", **changes):
        settings = {"layer": 1, "draws": 2, "batch_size": 25, "shard_examples": 70, "dtype": torch.float32, "seed": 0, **changes}
        prepared, backbone = Prepared(finished / "data/prepared"), Backbone(finished / "data/backbone")
        extract(prepared, backbone, tmp_path / name, runtime, masking=exact_count, **settings)
        return Shards(tmp_path / name)

    return extracted


def rows(shards, split, draw):
    return concatenate(list(shards.blocks(shards.entries(split, draw))))


def test_every_example_is_stored_once_a_draw_in_order(extracted, finished):
    shards = extracted()
    data = Prepared(finished / "data/prepared")
    for split, draw in (("train", 0), ("train", 1), ("validation", 0)):
        stored = rows(shards, split, draw)
        assert torch.equal(stored["uid"], data.split(split).uid) and torch.equal(stored["tokens"], data.split(split).tokens)


def test_shards_are_cut_as_planned(extracted):
    shards = extracted()
    assert [e["examples"] for e in shards.entries("train", 0)] == [70, 70, 70, 70, 20]
    assert [len(b["uid"]) for b in shards.blocks(shards.entries("train", 0)[:1])] == [25, 25, 20]
    assert {p.name for p in shards.folder.iterdir()} == {"index.json", *(e["file"] for e in shards.index["shards"])}


def test_the_index_holds_the_plan(extracted, finished):
    index = extracted(dtype=torch.bfloat16, seed=4).index
    plan = {k: index[k] for k in ("layer", "dim", "mask_id", "draws", "dtype", "batch_size", "seed")}
    assert plan == {"layer": 1, "dim": 16, "mask_id": 4, "draws": 2, "dtype": "bfloat16", "batch_size": 25, "seed": 4}
    assert index["backbone"] == read_json(finished / "data/backbone/model.json", "backbone")["fingerprint"]


def test_draws_differ_in_their_masks(extracted):
    shards = extracted()
    assert not torch.equal(rows(shards, "train", 0)["masked"], rows(shards, "train", 1)["masked"])


def test_draws_are_the_masks_of_the_epochs(extracted, finished):
    shards, data = extracted(seed=3), Prepared(finished / "data/prepared")
    for split, draw, stream in (("train", 0, None), ("train", 1, None), ("validation", 0, VALIDATION)):
        live = Examples(data.split(split), data.vocabulary, exact_count, 3, stream=stream)
        batch = live.batch(torch.arange(len(live)), draw)
        stored = rows(shards, split, draw)
        assert torch.equal(stored["masked"], batch.masked) and torch.equal(stored["weights"], batch.weights)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_enter_the_layer_that_was_asked_for(extracted, finished, layer):
    stored = rows(extracted(layer=layer), "validation", 0)
    trunk = Backbone(finished / "data/backbone").model().eval()
    seen = torch.where(stored["masked"], 4, stored["tokens"].long())
    assert torch.allclose(stored["hidden"], trunk.trunk(seen, None, layer), atol=1e-6)
    assert not torch.equal(stored["hidden"][0], stored["hidden"][1])


def test_the_same_plan_gives_the_same_bytes(extracted):
    one, other = extracted("one"), extracted("other")
    files = sorted(p.name for p in one.folder.iterdir())
    assert len(files) == 12 and all((one.folder / f).read_bytes() == (other.folder / f).read_bytes() for f in files)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_stored_in_their_dtype(extracted, dtype):
    assert rows(extracted(dtype=dtype), "validation", 0)["hidden"].dtype == dtype
