"""State of unfinished work: whole snapshots only, the right one, and nothing left behind."""

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from pipeline import tensor_files
from pipeline.errors import StorageError, UserError
from pipeline.machine import snapshot_writing, snapshots


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture(params=["at once", "behind"])
def way(request, monkeypatch):
    """A snapshot is written before the training goes on, or while it does."""
    if request.param == "behind":
        monkeypatch.setattr(snapshot_writing, "BEHIND", (*snapshot_writing.BEHIND, "cpu"))


BOTH_WAYS = pytest.mark.usefixtures("way")


def snapshot(place, step, out):
    (out / "curves.csv").write_text(f"step {step}")
    with place.in_use():
        place.save(step, {"x": torch.tensor([float(step)])}, {"step": step}, out)


@BOTH_WAYS
def test_the_newest_snapshot_comes_back_with_its_files(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with snapshots.workspace("warmup", "k" * 64):
        place = snapshots.of("warmup")
        snapshot(place, 1, out)
        snapshot(place, 2, out)
        (out / "curves.csv").write_text("later rows that were never saved")
        tensors, numbers = place.load(out)
        assert tensors["x"].item() == 2 and numbers == {"step": 2}
        assert (out / "curves.csv").read_text() == "step 2"


@BOTH_WAYS
def test_two_snapshots_are_kept(tmp_path):
    out, place = tmp_path / "out", snapshots.Scratch(tmp_path / "place")
    out.mkdir()
    for step, left in ((9, [9]), (10, [9, 10]), (11, [10, 11]), (100, [11, 100])):
        snapshot(place, step, out)
        assert sorted(p.name for p in place.folder.iterdir()) == [f"step-{n:09d}" for n in left]


@BOTH_WAYS
def test_a_finished_stage_leaves_nothing_and_a_failed_one_its_state(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RuntimeError), snapshots.workspace("joint", "k" * 64):
        snapshot(snapshots.of("joint"), 1, out)
        raise RuntimeError
    with snapshots.workspace("joint", "k" * 64):
        assert snapshots.of("joint").load(out) is not None
    assert not root.exists()


def test_other_settings_start_fresh(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RuntimeError), snapshots.workspace("joint", "a" * 64):
        snapshot(snapshots.of("joint"), 1, out)
        raise RuntimeError
    with snapshots.workspace("joint", "b" * 64):
        assert snapshots.of("joint").load(out) is None


DAMAGES = pytest.mark.parametrize("damage", ["flip", "cut", "remove", "description", "no description", "file", "no file"])


def harm(snapshot, damage):
    """Change one file of a snapshot."""
    file = snapshot / ("state.json" if "description" in damage else "out-curves.csv" if "file" in damage else "state.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content if damage in ("flip", "file") else content[:-3]))
    if damage in ("remove", "no description", "no file"):
        file.unlink()


@DAMAGES
@BOTH_WAYS
def test_a_damaged_snapshot_is_never_used(tmp_path, damage):
    out = tmp_path / "out"
    out.mkdir()
    place = snapshots.Scratch(tmp_path / "place")
    snapshot(place, 1, out)
    harm(tmp_path / "place/step-000000001", damage)
    assert place.load(out) is None
    assert not list((tmp_path / "place").iterdir())


@DAMAGES
@BOTH_WAYS
def test_where_the_newest_is_damaged_the_one_before_comes_back(tmp_path, damage):
    out = tmp_path / "out"
    out.mkdir()
    place = snapshots.Scratch(tmp_path / "place")
    for step in (1, 2, 3):
        snapshot(place, step, out)
    harm(tmp_path / "place/step-000000003", damage)
    tensors, numbers = place.load(out)
    assert tensors["x"].item() == 2 and numbers == {"step": 2}
    assert (out / "curves.csv").read_text() == "step 2"
    assert [p.name for p in place.folder.iterdir()] == ["step-000000002"]


@BOTH_WAYS
def test_to_look_changes_nothing(tmp_path):
    """What all processes but the first do, after it: the same snapshot, and no file is touched."""
    out = tmp_path / "out"
    out.mkdir()
    place = snapshots.Scratch(tmp_path / "place")
    snapshot(place, 1, out)
    snapshot(place, 2, out)
    (out / "curves.csv").write_text("later")
    assert place.load(None)[1] == {"step": 2}
    harm(tmp_path / "place/step-000000002", "cut")
    assert place.load(None)[1] == {"step": 1}
    assert (out / "curves.csv").read_text() == "later" and len(list(place.folder.iterdir())) == 2


@BOTH_WAYS
def test_a_file_that_was_not_there_yet_is_no_part_of_a_snapshot(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    place = snapshots.Scratch(tmp_path / "place")
    snapshot(place, 1, out)
    (out / "model.safetensors").write_bytes(b"best")
    snapshot(place, 2, out)
    for file in out.iterdir():
        file.unlink()
    place.load(out)
    assert (out / "model.safetensors").read_bytes() == b"best" and len(list(out.iterdir())) == 2


@BOTH_WAYS
def test_a_disk_that_refuses_a_snapshot_is_told_and_leaves_the_one_before(tmp_path, monkeypatch):
    """safetensors puts what the system says in words of its own."""
    out, place = tmp_path / "out", snapshots.Scratch(tmp_path / "place")
    out.mkdir()
    snapshot(place, 1, out)

    def full(*_):
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(StorageError, match=r"writing/state.safetensors cannot be written: the disk of .* is full"):
        snapshot(place, 2, out)
    assert [path.name for path in place.folder.iterdir()] == ["step-000000001"] and place.load(None)[1] == {"step": 1}


def test_outside_of_a_stage_nothing_is_kept(tmp_path):
    place = snapshots.of("warmup")
    place.save(1, {"x": torch.ones(1)}, {}, tmp_path)
    assert place.folder is None and place.load(tmp_path) is None and snapshots.folder("shards") is None


@BOTH_WAYS
def test_a_snapshot_has_reached_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    out, synced = tmp_path / "out", []
    out.mkdir()
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino) or real_sync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: synced.append(b.name) or real_replace(a, b))
    place = snapshots.Scratch(tmp_path / "place")
    snapshot(place, 1, out)
    made = tmp_path / "place/step-000000001"
    before, after = synced[: synced.index(made.name)], synced[synced.index(made.name) + 1 :]
    assert before[0] == "state.safetensors" and len(list(made.iterdir())) == 3
    assert set(before[1:]) == {path.stat().st_ino for path in (made, *made.iterdir())}
    assert after == [(tmp_path / "place").stat().st_ino]


@BOTH_WAYS
def test_an_unfinished_snapshot_is_not_a_snapshot(tmp_path):
    out, place = tmp_path / "out", snapshots.Scratch(tmp_path / "place")
    out.mkdir()
    (tmp_path / "place" / "writing").mkdir(parents=True)
    (tmp_path / "place" / "writing" / "out-other.csv").write_text("of a run that was killed")
    assert place.load(out) is None
    snapshot(place, 1, out)
    assert [path.name for path in place.folder.iterdir()] == ["step-000000001"]
    assert not list(place.folder.rglob("*other*"))


def test_the_same_work_twice_at_once_is_refused():
    with (
        snapshots.workspace("warmup", "k" * 64),
        pytest.raises(UserError, match="already running"),
        snapshots.workspace("warmup", "k" * 64),
    ):
        pass


def test_of_several_processes_the_first_alone_holds_and_removes_the_work(root, monkeypatch):
    with snapshots.workspace("warmup", "k" * 64):
        monkeypatch.setenv("RANK", "1")
        with snapshots.workspace("warmup", "k" * 64):
            place = snapshots.folder("warmup")
        assert place.parent.is_dir()
        monkeypatch.setenv("RANK", "0")
        assert snapshots.folder("warmup") == place
    assert not root.exists()


def test_abandoned_work_is_collected_by_age(root, monkeypatch):
    old = root / "warmup" / "abandoned"
    old.mkdir(parents=True)
    (old / "step-000000001").symlink_to("gone")  # as one that another stage removes between two looks
    with snapshots.workspace("warmup", "a" * 64):
        assert old.exists()
    much_later = time.time() + snapshots.STALE_AFTER + 1
    monkeypatch.setattr(time, "time", lambda: much_later)
    with snapshots.workspace("warmup", "a" * 64):
        assert not old.exists()


def test_the_key_changes_with_settings_inputs_and_dependencies(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/index.json").write_text("1")

    def now(text="x.shards = 'data'\n", dependencies="loop.py 1\n", place=tmp_path):
        return snapshots.key(text, dependencies, place)

    first = now()
    assert now() == first
    others = [now("x.shards = 'data'\ny = 1\n"), now(dependencies="loop.py 2\n"), now(place=tmp_path / "elsewhere")]
    (tmp_path / "data/index.json").write_text("2")
    assert len({first, *others, now()}) == 5


def test_folders_are_those_of_the_place(tmp_path):
    (tmp_path / "place/data").mkdir(parents=True)
    text = "x.shards = 'data'\ny.other = 'none'\n"
    assert snapshots.folders_named_in(text, tmp_path / "place") == [Path("data")] and not snapshots.folders_named_in(text, tmp_path)


# Whatever a folder is called


NAMES = ("plain", "with space", "a+b", "a=b", "a,b", "a~b", "été", "quote'd", 'double"d', "back\\slash", "(1)", "#7", "100%", "a@b")


@pytest.mark.parametrize("name", NAMES)
def test_the_key_follows_the_inputs_of_a_folder_with_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "manifest.json").write_text("1")
    text = f"warmup.run.backbone = {name!r}\nevaluate.run.models = {{'a': {name!r}, 'b': 3}}\n"
    assert snapshots.folders_named_in(text, tmp_path) == [Path(name)]
    before = snapshots.key(text, "", tmp_path)
    (tmp_path / name / "manifest.json").write_text("2")
    assert snapshots.key(text, "", tmp_path) != before


@pytest.mark.parametrize("word", ["x" * 5000, "a\0b", "", "nowhere"])
def test_a_word_that_is_no_folder_is_none(tmp_path, word):
    assert snapshots.folders_named_in(f"a.b.c = {word!r}\n", tmp_path) == []


# Two runs into one folder


def test_two_runs_do_not_write_to_one_folder(root, tmp_path):
    with snapshots.alone_in(tmp_path / "out"):
        with pytest.raises(UserError, match=r"another run writes to .*out.*--out DIR"), snapshots.alone_in(tmp_path / "x/../out"):
            pass
        with snapshots.alone_in(tmp_path / "other"):
            pass
    with snapshots.alone_in(tmp_path / "out"):
        pass
    assert not root.exists()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_told_in_a_line_and_used(root, tmp_path, monkeypatch, capsys, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(snapshots.fcntl, "flock", flock)
    with snapshots.workspace("warmup", "k" * 64), snapshots.alone_in(tmp_path / "out"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("no lock on ") and os.strerror(error) in line for line in lines)
    assert not root.exists()
