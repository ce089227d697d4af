"""Shards: plain WebDataset tars of blocks, the same bytes twice, and every kind of damage found and named."""

import io
import json
import os
import tarfile

import pytest
import torch
import webdataset as wds
from safetensors.torch import load, save

from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.shards import Shards, concatenate, write_index, write_shard


def blocks(n=3, rows=4):
    generator = torch.Generator().manual_seed(0)
    for number in range(n):
        yield {
            "uid": torch.arange(rows * number, rows * (number + 1)),
            "tokens": torch.randint(9, (rows, 6), generator=generator, dtype=torch.int32),
            "masked": torch.rand(rows, 6, generator=generator) < 0.5,
            "weights": torch.rand(rows, 6, generator=generator),
            "hidden": torch.randn(rows, 6, 8, generator=generator).to(torch.bfloat16),
        }


@pytest.fixture
def folder(tmp_path):
    """Two shards of one draw: 12 and 4 rows."""
    entries = [write_shard(tmp_path / "a.tar", blocks(3)), write_shard(tmp_path / "b.tar", blocks(1))]
    write_index(tmp_path, {"shards": [{**e, "split": "train", "draw": 0} for e in entries]})
    return tmp_path


def read(folder):
    shards = Shards(folder)
    return list(shards.blocks(shards.entries("train", 0)))


def rewrite(folder, name, content):
    """Replace a shard and make the index agree with it."""
    (folder / name).write_bytes(content)
    index = json.loads((folder / "index.json").read_text())
    for entry in index["shards"]:
        entry["sha256"] = sha256(folder / entry["file"])
    write_index(folder, index)


def tar_of(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_blocks_come_back_exactly_and_in_order(folder):
    found = read(folder)
    written = [*blocks(3), *blocks(1)]
    assert len(found) == 4
    for one, other in zip(found, written, strict=True):
        assert set(one) == set(other)
        assert all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in other)


def test_the_index_entry_counts_and_hashes(tmp_path):
    entry = write_shard(tmp_path / "a.tar", blocks(3))
    assert entry == {"file": "a.tar", "examples": 12, "sha256": sha256(tmp_path / "a.tar")}


def test_the_same_states_give_the_same_bytes(tmp_path):
    write_shard(tmp_path / "a.tar", blocks())
    os.utime(tmp_path / "a.tar", (0, 0))
    write_shard(tmp_path / "x/b.tar", blocks())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "x/b.tar").read_bytes()


def test_members_name_no_clock_user_or_host(folder):
    with tarfile.open(folder / "a.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["000000.safetensors", "000001.safetensors", "000002.safetensors"]
    assert {(m.mtime, m.uname, m.gname) for m in members} == {(0, "", "")}


def test_webdataset_itself_reads_a_shard(folder):
    with (folder / "a.tar").open("rb") as stream:
        samples = list(wds.tariterators.group_by_keys(wds.tariterators.tar_file_expander([{"url": "a.tar", "stream": stream}])))
    assert [s["__key__"] for s in samples] == ["000000", "000001", "000002"]
    assert all(torch.equal(load(s["safetensors"])["hidden"], b["hidden"]) for s, b in zip(samples, blocks(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_states_that_are_not_finite_are_refused_and_nothing_written(tmp_path, value):
    broken = list(blocks(2))
    broken[1]["hidden"][3, 5, 7] = value
    with pytest.raises(DataError, match=r"a.tar, block 1: 'hidden' holds non-finite numbers; check the backbone"):
        write_shard(tmp_path / "a.tar", broken)
    assert not list(tmp_path.iterdir())


def test_a_shard_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.tar: no examples to write"):
        write_shard(tmp_path / "a.tar", [])


def test_a_folder_without_index_was_never_finished(folder):
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"index.json does not exist; it is written by stage extract: run dvc repro extract"):
        Shards(folder)


@pytest.mark.parametrize(("split", "draw"), [("train", 1), ("validation", 0)])
def test_a_draw_that_is_not_stored_is_named(folder, split, draw):
    with pytest.raises(DataError, match=rf"holds no draw {draw} of split '{split}'; run dvc repro extract"):
        Shards(folder).entries(split, draw)


@pytest.mark.parametrize("position", [0, 600, 3000, -1])
def test_one_flipped_byte_is_found(folder, position):
    content = bytearray((folder / "a.tar").read_bytes())
    content[position] ^= 1
    (folder / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a.tar is damaged: sha256 .* run dvc repro extract"):
        read(folder)


@pytest.mark.parametrize("kept", [0, 512, 2000])
def test_a_truncated_shard_is_found(folder, kept):
    (folder / "b.tar").write_bytes((folder / "b.tar").read_bytes()[:kept])
    with pytest.raises(DataError, match=r"b.tar is damaged: sha256 .* run dvc repro extract"):
        read(folder)


def test_a_missing_shard_is_found(folder):
    (folder / "b.tar").unlink()
    with pytest.raises(DataError, match=r"b.tar is listed in the manifest but does not exist; run dvc repro extract"):
        read(folder)


def test_a_member_that_is_no_block_is_named(folder):
    rewrite(folder, "b.tar", tar_of(("000000.safetensors", b"what is this")))
    with pytest.raises(DataError, match=r"b.tar, member 000000.safetensors: not a block of states"):
        read(folder)


def test_a_block_that_lacks_a_tensor_is_named(folder):
    part = {k: v for k, v in next(blocks()).items() if k not in ("hidden", "weights")}
    rewrite(folder, "b.tar", tar_of(("000000.safetensors", save(part))))
    with pytest.raises(DataError, match=r"b.tar, member 000000.safetensors: a block of states lacks hidden, weights"):
        read(folder)


@pytest.mark.parametrize("members", [0, 2])
def test_another_number_of_examples_than_promised_is_found(folder, members):
    content = save(next(blocks()))
    rewrite(folder, "b.tar", tar_of(*((f"{i:06d}.safetensors", content) for i in range(members))))
    with pytest.raises(DataError, match=rf"b.tar holds {4 * members} examples, its index promises 4; run dvc repro extract"):
        read(folder)


def test_concatenate_keeps_rows_in_order():
    joined = concatenate(list(blocks(3)))
    assert joined["uid"].tolist() == list(range(12)) and joined["hidden"].shape == (12, 6, 8)
