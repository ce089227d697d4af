"""Files appear whole or not at all, hashes find damage, and messages name the stage to run."""

import errno
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, StorageError
from pipeline.files import absence, put_durably, read_json, sha256, storing, verify, write_atomic, write_durably, write_json


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


FAILING = [(write_atomic, "replace"), (write_durably, "replace"), (write_durably, "fsync")]


def failing_with(number):
    """A system call that a disk refuses."""

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize(("write", "failing"), FAILING)
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, r"the disk of .* is full \([\d,]+ bytes are free of 3 that are needed\); make room and run the same again"),
        (errno.EDQUOT, r"is full"),
        (errno.EROFS, r"its disk is read-only; put it right, or name another place"),
        (errno.EACCES, r"there is no permission"),
        (errno.EIO, r"its disk fails"),
    ],
)
def test_a_refused_write_is_one_line_and_leaves_the_old_file_alone(tmp_path, monkeypatch, write, failing, number, told):
    write_atomic(tmp_path / "f", b"old")
    monkeypatch.setattr(os, failing, failing_with(number))
    with pytest.raises(StorageError, match=rf"^{re.escape(str(tmp_path))}/f cannot be written: .*{told}") as error:
        write(tmp_path / "f", b"new")
    assert "\n" not in str(error.value)
    assert (tmp_path / "f").read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("method", ["write_bytes", "mkdir"])
def test_a_disk_that_is_full_before_the_first_byte_is_told(tmp_path, monkeypatch, method):
    monkeypatch.setattr(Path, method, failing_with(errno.ENOSPC))
    with pytest.raises(StorageError, match=rf"the disk of {re.escape(str(tmp_path))}.* is full"):
        write_atomic(tmp_path / "a/b/f", b"new")


def test_what_no_disk_causes_stays_a_bug(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", failing_with(errno.EINVAL))
    with pytest.raises(OSError, match="Invalid argument"):
        write_atomic(tmp_path / "f", b"new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_atomic, write_durably])
def test_what_stands_in_the_way_of_a_file_is_told(tmp_path, write):
    (tmp_path / "folder/f").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, told in (
        ("folder/f", "folder/f cannot be written: it is a folder, and a file is expected"),
        ("file/f", f"file/f cannot be written: {tmp_path}/file is a file, and a folder is expected"),
        ("file/a/f", f"file/a/f cannot be written: {tmp_path}/file is a file, and a folder is expected"),
        ("loop/f", "loop/f cannot be written: "),
        ("n" * 300, "its name is too long for the disk"),
    ):
        with pytest.raises(StorageError) as error:
            write(tmp_path / name, b"new")
        assert told in str(error.value)
    assert {p.name for p in tmp_path.rglob("*")} == {"folder", "f", "file", "loop"} and (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_written_first_is_removed_too(tmp_path):
    with pytest.raises(StorageError, match="full"), storing(tmp_path / "final", tmp_path / "writing"):
        (tmp_path / "writing").mkdir()
        (tmp_path / "writing/a").write_text("half")
        failing_with(errno.ENOSPC)()
    assert not list(tmp_path.iterdir())


def test_an_absence_says_what_stands_there_instead(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert absence(tmp_path / "folder") == "is a folder, and a file is expected"
    assert absence(tmp_path / "file", "folder") == "is a file, and a folder is expected"
    assert absence(tmp_path / "loop") == f"is a link that leads nowhere (to {tmp_path}/loop)"
    assert absence(tmp_path / "file/x") == f"does not exist: {tmp_path}/file is a file, and a folder is expected"
    assert absence(tmp_path / "a/b") == "does not exist"


@pytest.mark.parametrize("made", [Path.mkdir, lambda path: path.symlink_to(path)])
def test_json_that_is_no_file_names_the_stage(tmp_path, made):
    made(tmp_path / "m.json")
    with pytest.raises(DataError, match=r"m.json is a .*; it is written by stage extract: run dvc repro extract"):
        read_json(tmp_path / "m.json", "extract")
    with pytest.raises(DataError, match=r"m.json is listed in the manifest but is a .*; run dvc repro extract"):
        verify(tmp_path / "m.json", "0" * 64, "extract")


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
