"""Extraction: every example and draw once, whoever computes it and however it is cut; what was killed goes on."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.objective.masking import exact_count
from components.quantisation import expanded
from pipeline.corpora.prepared import Prepared
from pipeline.data import extraction as module
from pipeline.data.batches import VALIDATION, CachedSource, LiveSource
from pipeline.data.extraction import extract
from pipeline.data.reader import ShardReader
from pipeline.data.shard_writer import ShardError
from pipeline.data.streaming import StreamedSource
from pipeline.errors import ConfigError, UserError
from pipeline.files import read_json
from pipeline.machine import snapshots
from pipeline.models.backbones import Backbone
from stages.__main__ import main
from tests.conftest import workspace
from tests.pipeline.conftest import forge, put, write_shards
from tests.support.dvc import content

SHARDS = [f"train-{draw:02d}-{number:05d}.tar" for draw in (0, 1) for number in range(4)] + ["validation-00-00000.tar"]


@pytest.fixture
def extracted(planned, tmp_path):
    """``extracted(name, ...)``: what was planned, extracted into a folder of that name and opened."""

    def extracted(name="shards", rows="ragged", **changes):
        extract(planned(rows, **changes), tmp_path / name)
        return ShardReader(tmp_path / name)

    return extracted


def stored(shards, split="train", draw=0):
    """All rows of a draw, by ascending uid."""
    return shards.read(shards.rows(split, draw), 12)


# What is stored


def test_every_example_is_stored_once_a_draw(extracted, inputs):
    shards, data = extracted(), Prepared(inputs / "ragged")
    for split, draw in (("train", 0), ("train", 1), ("validation", 0)):
        assert torch.from_numpy(shards.uid)[shards.rows(split, draw)].equal(data.split(split).uid)
        found = stored(shards, split, draw)
        assert torch.equal(found["targets"], data.split(split).tokens)
        assert torch.equal(found["length"], data.split(split).lengths())


def test_draws_are_the_masks_of_the_epochs(extracted, inputs):
    shards, data = extracted(seed=3), Prepared(inputs / "ragged")
    for split, draw, stream in (("train", 0, None), ("train", 1, None), ("validation", 0, VALIDATION)):
        live = LiveSource(data.split(split), data.vocabulary, exact_count, 3, stream=stream)
        batch = live.batch(torch.arange(len(live)), torch.full((len(live),), draw))
        found = stored(shards, split, draw)
        assert torch.equal(found["masked"], batch.masked) and torch.equal(found["weights"], batch.weights)
        assert torch.equal(found["tokens"].long(), batch.tokens)
    assert not torch.equal(stored(shards, "train", 0)["masked"], stored(shards, "train", 1)["masked"])


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_states_enter_the_layer_that_was_asked_for(extracted, inputs, layer):
    found = stored(extracted(layer=layer), "validation")
    trunk = Backbone(inputs / "backbone").model().eval()
    attention = torch.arange(12) < found["length"][:, None]
    with torch.no_grad():
        states = trunk.trunk(found["tokens"].long(), attention, layer)
    assert torch.allclose(found["hidden"], states * attention[..., None], atol=1e-5)


@pytest.mark.parametrize("taps", [(0,), (1, 0)])
def test_states_of_taps_lie_behind_those_at_the_split(extracted, inputs, taps):
    shards, plain = extracted(taps=taps), extracted("plain")
    assert shards.index["taps"] == list(taps) and "taps" not in plain.index
    assert shards.verify() > plain.verify() and shards.table.width == (1 + len(taps)) * plain.table.width
    trunk = Backbone(inputs / "backbone").model().eval()
    for split, draw in (("train", 0), ("train", 1), ("validation", 0)):
        ours, alone = stored(shards, split, draw), stored(plain, split, draw)
        assert all(torch.equal(ours[name], alone[name]) for name in alone if name != "hidden")
        attention = torch.arange(12) < ours["length"][:, None]
        with torch.no_grad():
            expected = [trunk.trunk(ours["tokens"].long(), attention, layer) for layer in (2, *taps)]
        torch.testing.assert_close(ours["hidden"], torch.cat(expected, -1) * attention[..., None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "fp8", "bf16"])
def test_states_of_taps_are_restored_as_batches_from_every_dtype(extracted, dtype):
    """At random and as a stream: the same Batch."""
    shards, full = extracted(dtype=dtype, taps=(1, 0)), extracted("full", taps=(1, 0))
    rows, epochs = torch.arange(7), torch.zeros(7, dtype=torch.long)
    source, exact = (CachedSource(reader, "validation") for reader in (shards, full))
    batch, expected = (each.batch(rows, epochs).to(torch.device("cpu")) for each in (source, exact))
    streamed = StreamedSource(shards.table, "validation")
    order = torch.from_numpy(shards.uid)[shards.table.stored("validation", 0)].argsort()
    again = streamed.batch(order, epochs).to(torch.device("cpu"))
    assert source.taps == streamed.taps == batch.tap_layers == again.tap_layers == (1, 0)
    for tap in (1, 0):
        error = (batch.tap(tap).float() - expected.tap(tap)).norm(dim=-1) / expected.tap(tap).norm(dim=-1).clamp_min(1e-9)
        assert 0 < float(error.max()) < 0.15 and torch.equal(again.tap(tap), batch.tap(tap))


def inside(index, taps):
    index["taps"] = taps


@pytest.mark.parametrize("taps", [None, 1, "1", [2], [1, 5], [-1], [0, 0], [1.0, 0], [True, 0], [[0]], [1]], ids=str)
def test_taps_that_extract_never_wrote_are_named(extracted, taps):
    """With two taps in the shards; a list of one that could be one is found when the bytes are read."""
    shards = extracted(taps=(1, 0))
    forge(shards.folder, in_index=partial(inside, taps=taps))
    with pytest.raises(ShardError, match="run dvc repro extract"):
        stored(ShardReader(shards.folder))


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_states_are_stored_in_their_dtype(extracted, name, dtype):
    shards = extracted(dtype=name)
    assert stored(shards)["hidden"].dtype == getattr(torch, dtype) and shards.index["dtype"] == dtype
    assert (shards.channel is not None) == ("scale" in stored(shards)) == (name in ("int8", "fp8"))


def test_bfloat16_states_are_the_rounded_ones(extracted):
    assert torch.equal(stored(extracted("a", dtype="bf16"))["hidden"], stored(extracted("b"))["hidden"].bfloat16())


@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.02), ("fp8", 0.05)])
def test_the_error_of_states_in_eight_bits_is_measured(extracted, dtype, most):
    """Computed anew, from states that were stored in full; calibrated on the first batch alone."""
    shards, full = extracted(dtype=dtype), extracted("full")
    errors = []
    for split, draw in (("train", 0), ("train", 1), ("validation", 0)):
        found, exact = stored(shards, split, draw), stored(full, split, draw)["hidden"].double()
        difference = expanded(found["hidden"], found["scale"], shards.channel).double() - exact
        kept = torch.arange(12) < found["length"][:, None]
        errors.append((difference.norm(dim=-1) / exact.norm(dim=-1))[kept])
    metrics, measured = read_json(shards.folder / "metrics.json", "extract"), torch.cat(errors)
    assert metrics["relative_error"] == pytest.approx(float(measured.mean()), rel=1e-3)
    assert metrics["relative_error_largest"] == pytest.approx(float(measured.max()), rel=1e-3)
    assert 0 < metrics["relative_error"] < most and metrics["tokens"] == len(measured)
    first = full.read(full.rows("train", 0)[:5], 12)
    calibration = first["hidden"][torch.arange(12) < first["length"][:, None]]
    alike = calibration / calibration.square().mean(-1, keepdim=True).sqrt()
    expected = alike.square().mean(0).sqrt() if dtype == "int8" else torch.ones(8)
    assert torch.allclose(shards.channel, expected, rtol=1e-5)


def test_metrics_count_what_is_stored(extracted):
    shards = extracted()
    lengths = int(shards.length.sum())
    metrics = read_json(shards.folder / "metrics.json", "extract")
    assert metrics == {"bytes": shards.verify(), "rows": 2 * 40 + 7, "tokens": lengths} and lengths < (2 * 40 + 7) * 12


def test_metrics_are_covered_by_the_index(extracted):
    shards = extracted()
    file = shards.folder / "metrics.json"
    file.write_text(file.read_text().replace('"rows": 87', '"rows": 88'))
    with pytest.raises(ShardError, match=r"metrics.json: it is not what was written; run dvc repro extract"):
        shards.verify()


# How it is cut


def test_the_index_holds_the_plan(extracted, inputs):
    plan = {
        "backbone": Backbone(inputs / "backbone").digest, "layer": 2, "dim": 8, "mask_id": 30, "pad_id": 31, "sequence": 12,
        "padded": True, "draws": 2, "dtype": "bfloat16", "batch_size": 5, "buckets": [6], "seed": 4,
    }  # fmt: skip
    index = extracted(dtype="bf16", seed=4, buckets=(6,)).index
    assert {name: index.get(name) for name in plan} == plan
    assert extracted("full", "full").index["padded"] is False


def test_shards_and_blocks_are_cut_as_planned(extracted):
    shards = extracted()
    assert [shard["file"] for shard in shards.index["shards"]] == SHARDS
    assert [shard["rows"] for shard in shards.index["shards"]] == [10] * 8 + [7]
    assert torch.from_numpy(shards.block).bincount().tolist() == [3, 3, 3, 1] * 8 + [3, 3, 1]
    assert {file.name for file in shards.folder.iterdir()} == {*SHARDS, "index.json", "index.safetensors", "metrics.json"}


def test_a_shard_holds_one_batch_and_a_block_one_row_at_least(extracted):
    shards = extracted(shard_bytes=1, block_bytes=1)
    assert {shard["rows"] for shard in shards.index["shards"] if shard["split"] == "train"} == {5}
    assert set(torch.from_numpy(shards.block).bincount().tolist()) == {1}


def test_a_large_shard_holds_a_draw(extracted):
    shards = extracted(shard_bytes=1 << 30, block_bytes=1 << 30)
    assert [shard["rows"] for shard in shards.index["shards"]] == [40, 40, 7] and len(set(shards.block)) == 3


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1}, {"batch_size": 40}, {"buckets": (4, 8)}, {"shard_bytes": 1}, {"block_bytes": 1 << 20}],
    ids=lambda changes: next(iter(changes)),
)
def test_how_it_is_computed_and_cut_changes_no_example(extracted, changes):
    one, other = extracted("one"), extracted("other", **changes)
    for split, draw in (("train", 0), ("train", 1), ("validation", 0)):
        a, b = stored(one, split, draw), stored(other, split, draw)
        assert all(torch.equal(a[name], b[name]) for name in a if name != "hidden")
        assert torch.allclose(a["hidden"], b["hidden"], atol=1e-5)


def test_buckets_save_the_trunk_its_padding(planned, tmp_path, monkeypatch):
    run, trunk = [], TinyLM.trunk
    monkeypatch.setattr(TinyLM, "trunk", lambda self, tokens, *rest: (run.append(tokens.shape[1]), trunk(self, tokens, *rest))[1])
    extract(planned(buckets=(4, 8)), tmp_path / "shards")
    assert set(run) == {4, 8, 12}


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_processes_writes_the_same_bytes(planned, tmp_path, monkeypatch, dtype, world):
    """Here one after the other, and last the first, which waits for the others."""
    out, wrote = tmp_path / "shards", []
    for rank in reversed(range(world)):
        before = times(out, {name for names in wrote for name in names})
        with monkeypatch.context() as patched:
            patched.setattr(module, "barrier", lambda: None)
            patched.setenv("WORLD_SIZE", str(world)), patched.setenv("RANK", str(rank))
            extract(planned(dtype=dtype), out)
        assert times(out, before) == before
        wrote.append({file.name for file in out.glob("*.tar")} - set(before))
    assert all(wrote) and max(map(len, wrote)) - min(map(len, wrote)) <= 1
    extract(planned(dtype=dtype), tmp_path / "alone")
    assert content(out) == content(tmp_path / "alone") and len(content(out)) == len(SHARDS) + 3


# What stops it


def test_too_little_room_is_refused_before_anything_is_computed(planned, tmp_path, monkeypatch):
    plan = planned()
    monkeypatch.setattr(module, "free_bytes", lambda folder: plan.tokens() * plan.width - 1)
    monkeypatch.setattr(TinyLM, "trunk", None)
    with pytest.raises(ConfigError, match=r"extract needs .* GB in .*/shards and .* GB are free; make room, set SLOTLOOP_SCRATCH"):
        extract(plan, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_what_is_there_already_needs_no_room(planned, tmp_path, monkeypatch):
    interrupted(planned(), tmp_path / "shards", monkeypatch, after=6)
    there = sum(file.stat().st_size for file in (tmp_path / "shards").glob("*.tar"))
    plan = planned()
    monkeypatch.setattr(module, "free_bytes", lambda folder: max(0, plan.tokens() * plan.width - there))
    extract(plan, tmp_path / "shards")
    assert ShardReader(tmp_path / "shards").verify()


def test_states_that_are_not_finite_are_refused(planned, tmp_path, inputs):
    plan = planned()
    plan.trunk.embedding.weight[int(Prepared(inputs / "ragged").split("train").tokens[7, 0])] = float("nan")
    with pytest.raises(
        ShardError, match=r"train-00-0000\d.tar :: 00000\d.safetensors :: hidden: non-finite numbers; check the back"
    ):
        extract(plan, tmp_path / "shards")
    assert not (tmp_path / "shards/index.json").exists()


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_nor_are_they_hidden_by_eight_bits(planned, tmp_path, dtype):
    plan = planned(dtype=dtype)
    plan.trunk.positions[11] = float("inf")
    with pytest.raises(ShardError, match="non-finite numbers; check the backbone"):
        extract(plan, tmp_path / "shards")


# What goes on


class Killed(BaseException):
    """As sudden as a signal, as far as code can tell."""


def interrupted(plan, out, monkeypatch, after):
    """Extract until so many shards are written."""
    written, write = [], module.write_shard

    def counting(*arguments, **more):
        if len(written) == after:
            raise Killed
        written.append(arguments[0].name)
        return write(*arguments, **more)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, "write_shard", counting)
        extract(plan, out)
    return written


def times(folder, names):
    return {name: (folder / name).stat().st_mtime_ns for name in names}


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("after", [0, 1, 5, 8])
def test_what_was_killed_goes_on_and_leaves_finished_shards_alone(planned, tmp_path, monkeypatch, after, dtype):
    out = tmp_path / "shards"
    done = interrupted(planned(dtype=dtype), out, monkeypatch, after)
    with pytest.raises(UserError, match="run dvc repro extract"):
        ShardReader(out)
    before = times(out, done)
    extract(planned(dtype=dtype), out)
    assert times(out, done) == before and len(done) == after
    extract(planned(dtype=dtype), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_in_a_stage_shards_are_made_in_scratch_and_linked_when_all_are_there(planned, tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    out = tmp_path / "out/shards"
    with pytest.raises(Killed), snapshots.workspace("extract", "key"):
        done = interrupted(planned(), out, monkeypatch, 4)
        raise Killed
    building = tmp_path / "scratch/extract/key/shards"
    before = times(building, done)
    assert not out.exists() and len(done) == 4
    with snapshots.workspace("extract", "key"):
        extract(planned(), out)
    assert times(out, done) == before and not (tmp_path / "scratch").exists()
    extract(planned(), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("linked", [0, 3, 10])
def test_a_kill_while_shards_are_linked_loses_none(planned, tmp_path, monkeypatch, linked):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    out, link, places = tmp_path / "out/shards", os.link, []

    def linking(source, target):
        if len(places) == linked:
            raise Killed
        places.append(target)
        link(source, target)

    with monkeypatch.context() as patched, pytest.raises(Killed), snapshots.workspace("extract", "key"):
        patched.setattr(os, "link", linking)
        extract(planned(), out)
    before = times(tmp_path / "scratch/extract/key/shards", SHARDS)
    shutil.rmtree(out)  # as DVC does
    with snapshots.workspace("extract", "key"):
        extract(planned(), out)
    assert times(out, SHARDS) == before and not (tmp_path / "scratch").exists()
    assert ShardReader(out).verify()


def test_where_nothing_can_be_linked_shards_are_copied(planned, tmp_path, monkeypatch):
    def elsewhere(source, target):
        raise OSError("another disk")

    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(os, "link", elsewhere)
    with snapshots.workspace("extract", "key"):
        extract(planned(), tmp_path / "out")
    extract(planned(), tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_another_plan_takes_over_no_shard(planned, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    interrupted(planned(), out, monkeypatch, 5)
    extract(planned(seed=1), out)
    extract(planned(seed=1), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_a_damaged_leftover_is_made_again(planned, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    first, second, third = interrupted(planned(), out, monkeypatch, 3)
    put(out / first, (out / first).read_bytes()[:-1])
    put((out / second).with_suffix(".json"), b"[]")
    (out / f"{third}.tmp").write_bytes(b"half")
    extract(planned(), out)
    extract(planned(), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_the_same_plan_gives_the_same_bytes(extracted):
    one, other = extracted("one"), extracted("other")
    assert content(one.folder) == content(other.folder) and len(content(one.folder)) == len(SHARDS) + 3
    assert extracted("third", seed=1).fingerprint != one.fingerprint


# On the command line


def test_verify_says_whether_every_byte_is_what_was_written(tmp_path, monkeypatch, rows, capsys):
    monkeypatch.chdir(workspace(tmp_path / "here", "smoke"))
    folder = write_shards(Path("data/shards"), rows(20))
    size = sum(file.stat().st_size for file in folder.glob("*.tar"))
    assert main(["extract", "--verify"]) == 0
    assert capsys.readouterr().out == f"extract: {size:,} bytes in data/shards are those that were written\n"
    content = (folder / "train-01-00001.tar").read_bytes()
    put(folder / "train-01-00001.tar", content[:800] + bytes([content[800] ^ 1]) + content[801:])
    shutil.copytree(folder, "elsewhere")
    for more, place in (([], "data/shards"), (["--out", "elsewhere"], "elsewhere")):
        assert main(["extract", "--verify", *more]) == 1
        found = capsys.readouterr()
        assert found.err.startswith(f"error: {place}/train-01-00001.tar: sha256 is ") and "run dvc repro extract" in found.err
        assert "those that were written" not in found.out and found.err.count("\n") == 1
    assert main(["extract", "--verify", "--out", "nowhere"]) == 1
    assert "run dvc repro extract" in capsys.readouterr().err
