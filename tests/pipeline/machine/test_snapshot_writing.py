"""Snapshots that are written while the training goes on: what they hold is of the moment of the save, whole or not at all, one at a
time, and what a disk refuses is told once. What holds in both ways is in test_snapshots.
"""

import errno
import resource
import threading
import time
import weakref
from contextlib import contextmanager

import pytest
import torch
from safetensors import SafetensorError

from pipeline import tensor_files
from pipeline.errors import StorageError, TrainingError
from pipeline.machine import snapshot_writing, snapshots
from pipeline.machine.process import Interrupted
from tests.support.dvc import wait_until
from tests.support.jobs import forked


@pytest.fixture(autouse=True)
def behind(monkeypatch):
    """What lies on the CPU is written as what lies on an accelerator."""
    monkeypatch.setattr(snapshot_writing, "BEHIND", (*snapshot_writing.BEHIND, "cpu"))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/curves.csv").write_text("step\n")
    return tmp_path / "out"


@pytest.fixture
def place(tmp_path):
    return snapshots.Scratch(tmp_path / "place")


@pytest.fixture
def gate(monkeypatch):
    """While it is not set, a thread writes no tensors: all else goes on before."""
    opened, write = threading.Event(), snapshot_writing.write_tensors

    def slow(path, tensors):
        assert opened.wait(60)
        write(path, tensors)

    monkeypatch.setattr(snapshot_writing, "write_tensors", slow)
    yield opened
    opened.set()


def save(place, step, out):
    place.save(step, {"x": torch.full((3,), float(step))}, {"step": step}, out)


def names(place):
    return sorted(path.name for path in place.folder.iterdir())


def test_the_training_goes_on_before_a_snapshot_is_written(place, out, gate):
    save(place, 1, out)
    assert names(place) == ["writing"] and place.load(None) is None
    gate.set()
    wait_until(lambda: names(place) == ["step-000000001"], "it has its name, though nobody waits for it")
    tensors, numbers = place.load(None)
    assert tensors["x"].tolist() == [1, 1, 1] and numbers == {"step": 1}
    place.finish()
    assert names(place) == ["step-000000001"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_lies_on_the_host_is_written_before_the_training_goes_on(place, out, monkeypatch, device):
    """Which way it goes depends on the device alone."""
    threads, write = [], snapshot_writing.write_tensors
    monkeypatch.setattr(snapshot_writing, "BEHIND", ("cuda", "mps") if device == "cpu" else ("cpu",))
    monkeypatch.setattr(snapshot_writing, "write_tensors", lambda *file: threads.append(threading.current_thread()) or write(*file))
    save(place, 1, out)
    assert (threads == [threading.main_thread()]) == (device == "cpu")
    place.finish()
    assert names(place) == ["step-000000001"] and len(threads) == 1


def test_a_snapshot_is_of_the_moment_of_the_save(place, out, gate):
    """Tensors, numbers and files that change while it is written: those of a run do, in place."""
    weight, moment = torch.nn.Parameter(torch.ones(2, 3)), torch.arange(6.0).view(2, 3).t()
    numbers = {"fit": {"validation": [1.0]}}
    place.save(4, {"weight": weight, "moment": moment}, numbers, out)
    with torch.no_grad():
        weight.add_(1)
        moment.zero_()
    numbers["fit"]["validation"].append(2.0)
    with (out / "curves.csv").open("a") as file:
        file.write("later\n")
    (out / "model.safetensors").write_bytes(b"later")
    gate.set()
    place.finish()
    for file in out.iterdir():
        file.unlink()
    tensors, numbers = place.load(out)
    assert torch.equal(tensors["weight"], torch.ones(2, 3)) and numbers == {"fit": {"validation": [1.0]}}
    assert torch.equal(tensors["moment"], torch.arange(6.0).view(2, 3).t())
    assert {file.name: file.read_text() for file in out.iterdir()} == {"curves.csv": "step\n"}


def test_a_save_waits_for_the_one_before_and_says_nothing(place, out, monkeypatch, capfd):
    at_work, most, write = [], [], snapshot_writing.write_tensors

    def slow(path, tensors):
        at_work.append(path)
        time.sleep(0.05)
        most.append(len(at_work))
        write(path, tensors)
        at_work.remove(path)

    monkeypatch.setattr(snapshot_writing, "write_tensors", slow)
    for step in range(1, 5):
        save(place, step, out)
        assert [f"step-{step - 1:09d}" in names(place), f"step-{step:09d}" in names(place)] == [step > 1, False]
    place.finish()
    assert most == [1] * 4 and names(place) == ["step-000000003", "step-000000004"]
    assert capfd.readouterr() == ("", "")


def test_the_copies_are_let_go_when_they_are_written(place, out, monkeypatch):
    """Not when the next are taken: there would be two of them."""
    taken, copies = [], snapshot_writing._copies

    def noted(tensors):
        made = copies(tensors)
        taken.extend(map(weakref.ref, made.values()))
        return made

    monkeypatch.setattr(snapshot_writing, "_copies", noted)
    save(place, 1, out)
    wait_until(lambda: taken and not any(copy() is not None for copy in taken), "they are gone")


# What a disk refuses


@contextmanager
def full(monkeypatch, number=errno.ENOSPC):
    """A disk that refuses tensors."""

    def refusing(*_):
        raise SafetensorError(f"Error while serializing: I/O error: refused (os error {number})")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", refusing)
        yield


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk of .* is full"), (errno.EFBIG, "it would be larger than"), (errno.EACCES, "there is no permission")],
)
def test_what_a_disk_refuses_is_told_at_the_next_save_and_once(place, out, monkeypatch, capfd, number, reason):
    save(place, 1, out)
    place.finish()
    with full(monkeypatch, number):
        save(place, 2, out)
        with pytest.raises(StorageError, match=f"writing/state.safetensors cannot be written: {reason}") as refused:
            save(place, 3, out)
    assert "\n" not in str(refused.value) and names(place) == ["step-000000001"] and place.load(None)[1] == {"step": 1}
    place.finish()
    save(place, 3, out)
    place.finish()
    assert names(place) == ["step-000000001", "step-000000003"]
    assert capfd.readouterr() == ("", "")


def test_a_file_that_may_not_be_so_large_is_told_at_the_end(place, out, capfd):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(StorageError, match=r"state.safetensors cannot be written: it would be larger than"), place.in_use():
            place.save(1, {"x": torch.ones(30_000)}, {}, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert names(place) == [] and capfd.readouterr() == ("", "")


def test_what_cannot_be_synced_is_told_too(place, out, monkeypatch):
    def failing(path):
        raise OSError(errno.EIO, "input/output error", str(path))

    monkeypatch.setattr(snapshot_writing, "synced", failing)
    save(place, 1, out)
    with pytest.raises(StorageError, match="step-000000001 cannot be written: its disk fails"):
        place.finish()
    assert names(place) == []


def test_a_bug_in_the_thread_is_raised_where_it_can_be_seen(place, out, monkeypatch, capfd):
    monkeypatch.setattr(snapshot_writing, "sha256", lambda _: 1 / 0)
    save(place, 1, out)
    with pytest.raises(ZeroDivisionError):
        save(place, 2, out)
    assert names(place) == [] and capfd.readouterr() == ("", "")


def test_files_that_cannot_be_copied_are_told_at_once(place, out, monkeypatch):
    def refusing(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(snapshot_writing.shutil, "copyfile", refusing)
    with pytest.raises(StorageError, match="step-000000001 cannot be written: the disk of"):
        save(place, 1, out)
    assert names(place) == []
    place.finish()


# Where it ends


@pytest.mark.parametrize("how", [None, Interrupted("SIGTERM"), TrainingError("nan"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_however_it_ends_what_was_saved_is_written_first(place, out, gate, how):
    def end():
        with place.in_use():
            save(place, 1, out)
            threading.Timer(0.1, gate.set).start()
            if how is not None:
                raise how

    if how is None:
        end()
    else:
        with pytest.raises(type(how)) as raised:
            end()
        assert raised.value is how
    assert names(place) == ["step-000000001"] and place.load(None)[1] == {"step": 1}


@pytest.mark.parametrize("how", [Interrupted("SIGTERM"), RuntimeError("a bug")])
def test_what_a_disk_refused_is_told_whatever_comes_after_it(place, out, monkeypatch, how):
    with full(monkeypatch), pytest.raises(StorageError, match="is full") as refused, place.in_use():
        save(place, 1, out)
        raise how
    assert refused.value.__context__ is not None and names(place) == []


def test_a_stage_that_ends_well_leaves_nothing(tmp_path, monkeypatch, out):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    with snapshots.workspace("warmup", "k" * 64):
        scratch = snapshots.of("warmup")
        with scratch.in_use():
            save(scratch, 1, out)
    assert not (tmp_path / "scratch").exists()


def test_outside_of_a_stage_there_is_nothing_to_wait_for(tmp_path):
    with snapshots.of("warmup").in_use():
        snapshots.of("warmup").save(1, {"x": torch.ones(1)}, {}, tmp_path)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal
from pathlib import Path
import torch
from pipeline.machine import snapshot_writing, snapshots

snapshot_writing.BEHIND, sync, place = ("cpu",), snapshot_writing.synced, snapshots.Scratch(Path("place"))

def synced(path):
    seen.append(path.name)
    if len(seen) == {moment}:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)

Path("out").mkdir()
Path("out/curves.csv").write_text("rows")
for step in (1, 2):
    place.save(step, {{"x": torch.full((3,), float(step))}}, {{"step": step}}, Path("out"))
    if step == 1:
        place.finish()
        seen, snapshot_writing.synced = [], synced
place.finish()
"""


@pytest.mark.parametrize(("moment", "newest"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)])
def test_killed_in_the_midst_of_one_the_newest_whole_one_counts(tmp_path, place, out, moment, newest):
    """Before each of the files, the folder and the name has reached the disk."""
    (tmp_path / "work").mkdir()
    [process] = forked(KILLED.format(moment=moment), 1, tmp_path / "work")
    assert process.returncode == -9
    place.folder = tmp_path / "work/place"
    assert ("writing" in names(place)) == (newest == 1)
    assert place.load(None)[1] == {"step": newest}
    save(place, 3, out)
    place.finish()
    assert names(place) == [f"step-{newest:09d}", "step-000000003"]
