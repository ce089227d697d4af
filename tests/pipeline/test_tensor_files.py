"""Tensors on disk: the library's bytes, whole or not at all, without a second copy in memory."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from pipeline import tensor_files
from pipeline.errors import StorageError
from pipeline.tensor_files import read_tensors, tensor_names, write_tensors
from tests.conftest import ROOT
from tests.support.peak_memory import peak_memory

MIXED = {
    "z": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "long": torch.tensor(7),
    "empty": torch.empty(0, 4),
}


@pytest.mark.parametrize("tensors", [MIXED, {}, {"one": torch.tensor([float("nan"), -0.0])}, dict(reversed(MIXED.items()))])
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_what_is_written_are_the_librarys_bytes(tmp_path, tensors, metadata):
    write_tensors(tmp_path / "a/t.safetensors", tensors, metadata)
    assert (tmp_path / "a/t.safetensors").read_bytes() == save(tensors, metadata)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["t.safetensors"]


def test_what_is_no_plain_tensor_on_the_host_is_written_as_one(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    write_tensors(tmp_path / "t", {"weight": weight, "part": weight[1:, :1]})
    assert (tmp_path / "t").read_bytes() == save({"weight": weight.data.contiguous(), "part": weight.data[1:, :1].contiguous()})


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_others_may_read_it_as_they_may_any_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "t", MIXED)
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "t").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_reading_gives_all_or_those_of_the_named_that_are_there(tmp_path):
    write_tensors(tmp_path / "t", MIXED)
    whole, some = read_tensors(tmp_path / "t"), read_tensors(tmp_path / "t", ["z", "none", "long"])
    assert whole.keys() == MIXED.keys() == tensor_names(tmp_path / "t").keys() and list(some) == ["z", "long"]
    for name, tensor in (whole | some).items():
        assert tensor.dtype == MIXED[name].dtype and torch.equal(tensor, MIXED[name])


def test_names_are_listed_once_however_many_are_read(tmp_path, monkeypatch):
    listings = []

    class Counted:
        def __init__(self, *args):
            self.file = plain(*args)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args):
            return self.file.__exit__(*args)

        def keys(self):
            listings.append(1)
            return self.file.keys()

        def get_tensor(self, name):
            return self.file.get_tensor(name)

    plain = tensor_files.safe_open
    write_tensors(tmp_path / "t", MIXED)
    monkeypatch.setattr(tensor_files, "safe_open", Counted)
    assert len(read_tensors(tmp_path / "t")) == len(MIXED) and len(listings) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_is_told_and_the_old_file_stands(tmp_path, monkeypatch, number):
    """safetensors puts what the system says in words of its own."""

    def refused(tensors, file, metadata):
        (file.parent / ".tmpGnNeAN").write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    (tmp_path / "t").write_bytes(b"old")
    monkeypatch.setattr(tensor_files, "save_file", refused)
    with pytest.raises(StorageError, match=rf"^{re.escape(str(tmp_path))}/t cannot be written: ") as error:
        write_tensors(tmp_path / "t", MIXED)
    assert "\n" not in str(error.value) and (number != errno.ENOSPC or "bytes are free of 41 that are needed" in str(error.value))
    assert (tmp_path / "t").read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["t"]


def test_what_the_library_itself_refuses_is_no_matter_of_the_disk(tmp_path, monkeypatch):
    def unable(*_):
        raise SafetensorError("Error while serializing: a type that it does not know")

    monkeypatch.setattr(tensor_files, "save_file", unable)
    with pytest.raises(SafetensorError, match="does not know"):
        write_tensors(tmp_path / "t", MIXED)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from pipeline import tensor_files

def killed(tensors, file, metadata):
    (file.parent / ".tmpGnNeAN").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

tensor_files.save_file = killed
tensor_files.write_tensors(Path(sys.argv[1]), {"x": torch.ones(3)})
"""


@pytest.mark.parametrize("kills", [1, 2])
def test_what_a_kill_leaves_goes_when_the_same_is_written_again(tmp_path, kills):
    (tmp_path / "t.tmp").write_bytes(b"what an earlier version left")
    (tmp_path / "t").write_bytes(b"old")
    for _ in range(kills):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "t")], cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL and (tmp_path / "t").read_bytes() == b"old"
        assert {path.name for path in tmp_path.rglob("*")} == {"t", "t.tmp", ".tmpGnNeAN"}
    write_tensors(tmp_path / "t", MIXED)
    assert (tmp_path / "t").read_bytes() == save(MIXED) and [path.name for path in tmp_path.iterdir()] == ["t"]


SIZE = 20 * 4 * 2**20  # bytes of twenty tensors
MADE = """
import os, torch
from pipeline.tensor_files import read_tensors, write_tensors
path = Path(os.environ["SLOTLOOP_TEST"])
tensors = {str(number): torch.ones(2**20) for number in range(20)}
"""
WRITTEN = f"{MADE}\nwrite_tensors(path, tensors)\ndel tensors"


@pytest.mark.parametrize(
    ("before", "work", "most"),
    [
        (MADE, "write_tensors(path, tensors)", 0.3),
        (WRITTEN, "tensors = read_tensors(path)", 1.3),
        (WRITTEN, "tensors = read_tensors(path, ['3'])", 0.3),
    ],
)
def test_no_second_copy_is_in_memory(tmp_path, monkeypatch, before, work, most):
    monkeypatch.setenv("SLOTLOOP_TEST", str(tmp_path / "t"))
    taken, stored = peak_memory(before, work, "path.stat().st_size")
    assert stored > SIZE and taken < most * SIZE
