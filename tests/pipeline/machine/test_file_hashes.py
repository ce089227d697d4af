"""Hashes of files outside the repository: right after every change, and read once between two."""

import hashlib
import json
import os

import pytest

from pipeline.machine import file_hashes, snapshots

OLD, FUTURE = 1_000_000_000.0, 4_000_000_000.0


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(file_hashes, "LARGE", 100)
    return tmp_path / "scratch"


@pytest.fixture
def reads(monkeypatch):
    """Files that were read."""
    names = []
    real = file_hashes.sha256
    monkeypatch.setattr(file_hashes, "sha256", lambda path: names.append(path.name) or real(path))
    return names


def write(path, content, time=OLD):
    path.write_bytes(content)
    os.utime(path, (time, time))


def test_a_large_file_is_read_when_it_changed(tmp_path, reads):
    file = tmp_path / "model"
    for content, time in ((b"a" * 100, OLD), (b"b" * 100, OLD + 1), (b"c" * 101, OLD + 1)):
        write(file, content, time)
        assert file_hashes.content_hash(file) == file_hashes.content_hash(file) == hashlib.sha256(content).hexdigest()
    assert reads == ["model"] * 3


def test_a_small_file_leaves_nothing_behind(tmp_path, root, reads):
    write(tmp_path / "small", b"a" * 99)
    assert {file_hashes.content_hash(tmp_path / "small") for _ in range(2)} == {hashlib.sha256(b"a" * 99).hexdigest()}
    assert reads == ["small", "small"] and not root.exists()


def test_what_was_just_written_is_not_remembered(tmp_path, root):
    write(tmp_path / "young", b"a" * 100, FUTURE)  # as young as can be, however long this test is kept waiting
    file_hashes.content_hash(tmp_path / "young")
    assert not root.exists()


def test_a_missing_file_has_a_word_for_a_hash(tmp_path):
    assert file_hashes.content_hash(tmp_path / "none") == file_hashes.MISSING


@pytest.mark.parametrize("damage", ["{", "[]", '{"x": 3}', ""])
def test_a_damaged_memory_is_written_anew(tmp_path, root, reads, damage):
    write(tmp_path / "a", b"a" * 100)
    root.mkdir()
    (root / "file-hashes.json").write_text(damage)
    assert file_hashes.content_hash(tmp_path / "a") == hashlib.sha256(b"a" * 100).hexdigest()
    file_hashes.content_hash(tmp_path / "a")
    assert reads == ["a"]


def test_files_that_are_gone_are_forgotten(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, b"a" * 100)
    file_hashes.content_hash(tmp_path / "a")
    (tmp_path / "a").unlink()
    file_hashes.content_hash(tmp_path / "b")
    assert list(json.loads((snapshots.root() / "file-hashes.json").read_text())) == [str(tmp_path / "b")]
