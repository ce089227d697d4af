"""Files appear whole or not at all, hashes find damage, and messages name the stage to run."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.files import put_durably, read_json, sha256, verify, write_atomic, write_durably, write_json


@settings(max_examples=25, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_json(path, value)
    assert read_json(path, "prepare") == value


def test_json_has_one_form(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [2]})
    write_json(tmp_path / "b", {"a": [2], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b'{\n "a": [\n  2\n ],\n "b": 1\n}\n'


def test_writing_makes_folders_and_leaves_nothing_beside(tmp_path):
    write_atomic(tmp_path / "a/b/c.bin", b"data")
    assert (tmp_path / "a/b/c.bin").read_bytes() == b"data"
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["c.bin"]


WRITERS = pytest.mark.parametrize("write", [write_atomic, write_durably])


@pytest.mark.parametrize(("write", "failing"), [(write_atomic, "replace"), (write_durably, "replace"), (write_durably, "fsync")])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, write, failing):
    write_atomic(tmp_path / "f", b"old")
    monkeypatch.setattr(os, failing, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.fixture
def recorded(monkeypatch):
    """What reached the disk, as inodes, and names that were given, in their order."""
    steps, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(os.fstat(fd).st_ino) or sync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: steps.append((a.name, b.name)) or replace(a, b))
    return steps


def test_what_is_put_durably_reaches_the_disk_before_its_name_does(tmp_path, recorded):
    """Content, name, folder: a power cut leaves the file whole or absent."""
    (tmp_path / "f.part").write_bytes(b"data")
    put_durably(tmp_path / "f.part", tmp_path / "f")
    assert recorded == [(tmp_path / "f").stat().st_ino, ("f.part", "f"), tmp_path.stat().st_ino]
    assert (tmp_path / "f").read_bytes() == b"data" and not (tmp_path / "f.part").exists()


def test_writing_durably_goes_the_same_way(tmp_path, recorded):
    write_durably(tmp_path / "a/f", b"old")
    write_durably(tmp_path / "a/f", b"new")
    file, folder = (tmp_path / "a/f").stat().st_ino, (tmp_path / "a").stat().st_ino
    assert recorded[3:] == [file, ("f.tmp", "f"), folder] and recorded[1:3] == recorded[4:]
    assert (tmp_path / "a/f").read_bytes() == b"new" and [p.name for p in (tmp_path / "a").iterdir()] == ["f"]


@WRITERS
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_into_a_cache_is_replaced_not_written_through(tmp_path, link, write):
    (tmp_path / "cache").write_bytes(b"cached")
    link(tmp_path / "cache", tmp_path / "f")
    write(tmp_path / "f", b"new")
    assert (tmp_path / "cache").read_bytes() == b"cached" and (tmp_path / "f").read_bytes() == b"new"


def test_missing_json_names_the_stage(tmp_path):
    with pytest.raises(DataError, match=r"m.json does not exist; it is written by stage extract: run dvc repro extract"):
        read_json(tmp_path / "m.json", "extract")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00"])
def test_malformed_json_names_the_stage(tmp_path, content):
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(DataError, match=r"m.json is not valid JSON \(.*\); run dvc repro extract again"):
        read_json(tmp_path / "m.json", "extract")


def test_verify_accepts_the_content_that_was_hashed(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    verify(tmp_path / "f", sha256(tmp_path / "f"), "prepare")


@pytest.mark.parametrize("content", [b"abd", b"ab", b"abcd", b""])
def test_verify_finds_damage(tmp_path, content):
    (tmp_path / "f").write_bytes(b"abc")
    expected = sha256(tmp_path / "f")
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(
        DataError, match=r"f is damaged: sha256 [0-9a-f]{12}, its manifest says ba7816bf8f01; run dvc repro prepare"
    ):
        verify(tmp_path / "f", expected, "prepare")


def test_verify_misses_a_file(tmp_path):
    with pytest.raises(DataError, match=r"gone is listed in the manifest but does not exist; run dvc repro prepare"):
        verify(tmp_path / "gone", "0" * 64, "prepare")
