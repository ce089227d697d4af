"""State of unfinished work: whole snapshots only, the right one, and nothing left behind."""

import time

import pytest
import torch

from pipeline import scratch
from pipeline.closure import imports
from pipeline.errors import UserError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def snapshot(place, step, out):
    (out / "curves.csv").write_text(f"step {step}")
    place.save(step, {"x": torch.tensor([float(step)])}, {"step": step}, out)


def test_the_newest_snapshot_comes_back_with_its_files(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with scratch.kept("warmup", "k" * 64):
        place = scratch.of("warmup")
        snapshot(place, 1, out)
        snapshot(place, 2, out)
        (out / "curves.csv").write_text("later rows that were never saved")
        tensors, numbers = place.load(out)
        assert tensors["x"].item() == 2 and numbers == {"step": 2}
        assert (out / "curves.csv").read_text() == "step 2"
        assert [p.name for p in place.folder.iterdir()] == ["step-000000002"]


def test_a_finished_stage_leaves_nothing_and_a_failed_one_its_state(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RuntimeError), scratch.kept("joint", "k" * 64):
        snapshot(scratch.of("joint"), 1, out)
        raise RuntimeError
    with scratch.kept("joint", "k" * 64):
        assert scratch.of("joint").load(out) is not None
    assert not root.exists()


def test_other_settings_start_fresh(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RuntimeError), scratch.kept("joint", "a" * 64):
        snapshot(scratch.of("joint"), 1, out)
        raise RuntimeError
    with scratch.kept("joint", "b" * 64):
        assert scratch.of("joint").load(out) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "description"])
def test_a_damaged_snapshot_is_never_used(root, tmp_path, damage):
    out = tmp_path / "out"
    out.mkdir()
    place = scratch.Scratch(tmp_path / "place")
    snapshot(place, 1, out)
    state = tmp_path / "place" / "step-000000001" / ("state.json" if damage == "description" else "state.safetensors")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(bytes(content if damage == "flip" else content[:-3]))
    if damage == "remove":
        state.unlink()
    assert place.load(out) is None
    assert not list((tmp_path / "place").iterdir())


def test_an_unfinished_snapshot_is_not_a_snapshot(tmp_path):
    (tmp_path / "place" / "writing").mkdir(parents=True)
    assert scratch.Scratch(tmp_path / "place").load(tmp_path) is None


def test_the_same_work_twice_at_once_is_refused():
    with scratch.kept("warmup", "k" * 64), pytest.raises(UserError, match="already running"), scratch.kept("warmup", "k" * 64):
        pass


def test_abandoned_work_is_collected_by_age(root, monkeypatch):
    old = root / "warmup" / "abandoned"
    old.mkdir(parents=True)
    with scratch.kept("warmup", "a" * 64):
        assert old.exists()
    much_later = time.time() + scratch.STALE_AFTER + 1
    monkeypatch.setattr(time, "time", lambda: much_later)
    with scratch.kept("warmup", "a" * 64):
        assert not old.exists()


def test_the_key_changes_with_settings_inputs_and_the_code_that_they_reach(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "code"
    for folder in (tmp_path / "data", code / "pipeline", code / "stages"):
        folder.mkdir(parents=True)
    (tmp_path / "data/index.json").write_text("1")
    (code / "stages/warmup.py").write_text("from pipeline import loop\n")
    for module in ("loop", "sources", "report"):
        (code / f"pipeline/{module}.py").write_text("1")

    def now(text="x.shards = 'data'\n"):
        imports.cache_clear()
        return scratch.key("warmup", f"from pipeline import sources\n{text}", code)

    seen = [now()]
    assert now() == seen[0] and now("x.shards = 'data'\ny = 1\n") != seen[0]
    for file in ("data/index.json", "code/stages/warmup.py", "code/pipeline/loop.py", "code/pipeline/sources.py"):
        (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
        seen.append(now())
    assert len(set(seen)) == 5
    (code / "pipeline/report.py").write_text("2")
    assert now() == seen[-1]
