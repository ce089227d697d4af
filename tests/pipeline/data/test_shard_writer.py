"""Writing shards: plain WebDataset tars of safetensors, the same bytes twice, whole under their name or not there."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch
import webdataset as wds
from safetensors.torch import load

from pipeline.data import shard_writer as module
from pipeline.data.shard_writer import ShardError, committed, free_bytes, write_index, write_shard
from pipeline.errors import DataError
from pipeline.files import sha256
from tests.conftest import ROOT
from tests.pipeline.conftest import block, write_shards
from tests.support.dvc import content


@pytest.fixture
def blocks(rows):
    """``blocks(n)``: n blocks of 4 rows, new each time."""
    return lambda n=3: [block(rows(4 * n).take(torch.arange(4 * i, 4 * i + 4))) for i in range(n)]


@pytest.fixture
def shard(tmp_path, blocks):
    """A shard of three blocks and its record."""
    path = tmp_path / "a.tar"
    return path, write_shard(path, blocks(), "identity")


def indexed(folder, *records, **changes):
    write_index(folder, {"layer": 1}, [{"split": "train", "draw": 0, **record, **changes} for record in records])


# What others read


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # its own
def test_webdataset_itself_reads_a_shard(shard, blocks):
    samples = list(wds.WebDataset(str(shard[0]), shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["000000", "000001", "000002"]
    for sample, written in zip(samples, blocks(), strict=True):
        found = load(sample["safetensors"])
        assert set(found) == set(written)
        assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in written.items())


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
def test_tar_itself_lists_a_shard(shard):
    listed = subprocess.run(["tar", "-tf", shard[0]], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["000000.safetensors", "000001.safetensors", "000002.safetensors"] and not listed.stderr


def test_members_name_no_clock_user_or_host(shard):
    with tarfile.open(shard[0], "r:") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.isreg()) for m in members} == {(0, 0, 0, "", "", True)}
    assert len(members) == 3


# The same bytes


def test_the_same_states_give_the_same_bytes_and_record(shard, blocks, tmp_path):
    os.utime(shard[0], (0, 0))
    again = write_shard(tmp_path / "x/a.tar", blocks(), "identity")
    assert shard[0].read_bytes() == (tmp_path / "x/a.tar").read_bytes() and shard[1] == again


def test_other_states_give_other_bytes(shard, blocks, tmp_path):
    other = blocks()
    other[2]["hidden"][-1, -1] += 1
    again = write_shard(tmp_path / "x/a.tar", other, "identity")
    assert again["sha256"] != shard[1]["sha256"] and again["crc"] != shard[1]["crc"] and again["crc"][:-1] == shard[1]["crc"][:-1]


WRITE = """
import sys, torch
from pathlib import Path
from pipeline.corpora.prepared import Split
from tests.pipeline.conftest import write_shards
n = torch.arange(8)
response = torch.ones(8, 6, dtype=bool)
response[:, :2] = False
write_shards(Path(sys.argv[1]), Split(tokens=n[:, None].expand(8, 6).int(), response=response, group=n, uid=n))
"""


def test_another_process_gives_the_same_bytes(tmp_path, rows):
    write_shards(tmp_path / "here", rows(8))
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WRITE, tmp_path / "there"], env=env, check=True)
    assert content(tmp_path / "here") == content(tmp_path / "there") != {}


# Whole, or not there


def test_a_shard_that_is_being_written_is_not_visible(tmp_path, blocks):
    def killed():
        yield from blocks(2)
        assert not (tmp_path / "a.tar").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", killed(), "identity")
    assert not (tmp_path / "a.tar").exists() and not (tmp_path / "a.json").exists()
    assert committed(tmp_path / "a.tar", "identity") is None
    write_shard(tmp_path / "a.tar", blocks(2), "identity")
    assert {f.name for f in tmp_path.iterdir()} == {"a.tar", "a.json"}


def test_a_shard_reaches_the_disk_before_its_record(tmp_path, blocks, monkeypatch):
    happened = []
    monkeypatch.setattr("pipeline.files.synced", lambda path: happened.append(("synced", path.name)))
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda a, b: (happened.append(("named", b.name)), replace(a, b)))
    write_shard(tmp_path / "a.tar", blocks(1), "identity")
    wanted = [("synced", "a.tar.tmp"), ("named", "a.tar"), ("synced", tmp_path.name)]
    assert happened == [*wanted, ("synced", "a.json.tmp"), ("named", "a.json"), ("synced", tmp_path.name)]


def test_a_finished_shard_is_known_by_its_record(shard):
    assert committed(shard[0], "identity") == shard[1]
    assert shard[1]["bytes"] == shard[0].stat().st_size and shard[1]["sha256"] == sha256(shard[0])


def test_a_record_holds_what_was_noted_after_the_last_block(tmp_path, blocks):
    seen = []

    def noting():
        for one in blocks(2):
            seen.append(1)
            yield one

    record = write_shard(tmp_path / "a.tar", noting(), "identity", notes=lambda: {"error": len(seen)})
    assert record["error"] == 2 and committed(tmp_path / "a.tar", "identity")["error"] == 2


@pytest.mark.parametrize(
    "case", ["identity", "longer", "shorter", "missing", "no record", "list", "number", "half", "deep", "binary"]
)
def test_what_is_not_that_shard_is_written_again(shard, case):
    path, record = shard[0], shard[0].with_suffix(".json")
    identity = "another" if case == "identity" else "identity"
    if case in ("longer", "shorter"):
        os.truncate(path, path.stat().st_size + (1 if case == "longer" else -1))
    elif case in ("missing", "no record"):
        (path if case == "missing" else record).unlink()
    elif case != "identity":
        damage = {"list": b"[]", "number": b"3", "half": record.read_bytes()[:50], "deep": b"[" * 100_000, "binary": b"\xff\x00"}
        record.write_bytes(damage[case])
    assert committed(path, identity) is None


# What is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["hidden", "weights"])
def test_numbers_that_are_not_finite_are_refused_with_their_place(tmp_path, blocks, field, value):
    broken = blocks(2)
    broken[1][field][3] = value
    with pytest.raises(ShardError, match=rf"a.tar :: 000001.safetensors :: {field}: non-finite numbers; check the backbone"):
        write_shard(tmp_path / "a.tar", broken, "identity")
    assert not (tmp_path / "a.tar").exists() and not (tmp_path / "a.json").exists()


def test_a_bfloat16_that_is_not_finite_is_refused(tmp_path, blocks):
    broken = blocks(1)
    broken[0]["hidden"] = broken[0]["hidden"].bfloat16()
    broken[0]["hidden"][0, 0] = float("nan")
    with pytest.raises(ShardError, match="hidden: non-finite"):
        write_shard(tmp_path / "a.tar", broken, "identity")


UNFIT = {
    "a field too few": (lambda b: {k: v for k, v in b.items() if k != "weights"}, r"these are amiss: weights"),
    "a field too many": (lambda b: {**b, "pickle": b["masked"]}, r"these are amiss: pickle"),
    "tokens too few": (lambda b: {**b, "tokens": b["tokens"][1:]}, r":: tokens: 23 tokens, hidden has 24"),
    "scales too few": (lambda b: {**b, "scale": b["weights"][1:]}, r":: scale: 23 tokens, hidden has 24"),
    "uids too few": (lambda b: {**b, "uid": b["uid"][1:]}, r":: cu_seqlens: 4 lengths of 24 tokens do not cut 3 rows"),
    "a row of nothing": (lambda b: {**b, "cu_seqlens": torch.tensor([0, 6, 6, 18, 24])}, "cu_seqlens: 4 lengths of 24 tokens"),
    "a row backwards": (lambda b: {**b, "cu_seqlens": torch.tensor([0, 12, 6, 18, 24])}, "cu_seqlens: 4 lengths of 24 tokens"),
    "a later beginning": (
        lambda b: {**b, "cu_seqlens": torch.tensor([1, 6, 12, 18, 24])},
        r":: cu_seqlens: 4 lengths of 24 tokens",
    ),
    "an earlier end": (lambda b: {**b, "cu_seqlens": torch.tensor([0, 6, 12, 18, 23])}, "cu_seqlens: 4 lengths of 24 tokens"),
    "no cuts": (lambda b: {**b, "cu_seqlens": torch.tensor([], dtype=torch.int64)}, r":: cu_seqlens: 0 lengths"),
    "wide tokens": (lambda b: {**b, "tokens": b["tokens"].long()}, r":: tokens: torch.int64 instead of torch.int32"),
    "narrow weights": (lambda b: {**b, "weights": b["weights"].half()}, r":: weights: torch.float16 instead of torch.float32"),
    "masks as numbers": (lambda b: {**b, "masked": b["masked"].int()}, r":: masked: torch.int32 instead of torch.bool"),
}


@pytest.mark.parametrize("change,told", UNFIT.values(), ids=UNFIT)
def test_fields_that_do_not_fit_are_refused_with_their_place(tmp_path, blocks, change, told):
    good, other = blocks(2)
    with pytest.raises(ShardError, match=r"a.tar :: 000001.safetensors.*" + told):
        write_shard(tmp_path / "a.tar", [good, change(other)], "identity")
    assert not (tmp_path / "a.tar").exists()


def test_a_shard_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.tar: no examples to write"):
        write_shard(tmp_path / "a.tar", [], "identity")
    assert not list(tmp_path.iterdir())


# The index


def test_a_row_that_is_stored_twice_in_a_draw_is_refused(tmp_path, blocks):
    records = [write_shard(tmp_path / f"{name}.tar", blocks(1), "identity") for name in "ab"]
    with pytest.raises(ShardError, match=r"b.tar: row 0 is stored twice"):
        indexed(tmp_path, *records)
    indexed(tmp_path, records[0], {**records[1], "draw": 1})
    assert (tmp_path / "index.json").exists()


def test_shards_of_other_fields_are_refused(tmp_path, blocks):
    scaled = [{**b, "scale": b["weights"].clone(), "uid": b["uid"] + 9} for b in blocks(1)]
    records = [write_shard(tmp_path / "a.tar", blocks(1), "identity"), write_shard(tmp_path / "b.tar", scaled, "identity")]
    for one, other in (records, records[::-1]):
        with pytest.raises(ShardError, match=rf"{other['file']}: other fields than in {one['file']}"):
            indexed(tmp_path, one, other)


def test_the_index_is_written_last_and_names_the_hash_of_all_else(shard, monkeypatch):
    written, (path, record) = [], shard
    monkeypatch.setattr(module, "write_durably", lambda file, data: (written.append(file.name), file.write_bytes(data)))
    indexed(path.parent, record)
    index = json.loads((path.parent / "index.json").read_bytes())
    assert written == ["index.safetensors", "index.json"]
    assert index["rows"] == sha256(path.parent / "index.safetensors")
    wanted = {"file": "a.tar", "bytes": path.stat().st_size, "sha256": sha256(path), "split": "train", "draw": 0}
    assert index["shards"] == [{**wanted, "blocks": 3, "rows": 12}] and index["layer"] == 1


def test_the_fingerprint_changes_with_every_byte(shard, blocks, tmp_path):
    found = set()
    for change in (0, 1):
        other = blocks()
        other[0]["weights"][0] += change
        indexed(tmp_path, write_shard(tmp_path / "a.tar", other, "identity"))
        found.add(json.loads((tmp_path / "index.json").read_bytes())["fingerprint"])
    assert len(found) == 2 and all(re.fullmatch("[0-9a-f]{64}", f) for f in found)


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    assert free_bytes(tmp_path / "not/yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
