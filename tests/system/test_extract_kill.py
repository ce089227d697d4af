"""Extraction killed at any moment: finished shards are never made again, and it ends with the bytes of an uninterrupted run."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.dvc import content
from tests.support.jobs import alone, start

pytestmark = pytest.mark.slow
KILLS = 10
DRAWS = 12
OVERRIDES = (f"extract.run.draws={DRAWS}", "extract.run.batch_size=2", "extract.run.shard_bytes=20_000")
OUT = "data/shards"


def started(folder: Path) -> subprocess.Popen[bytes]:
    """extract as DVC starts it: its output removed."""
    shutil.rmtree(folder / OUT, ignore_errors=True)
    return start(folder, "extract", *OVERRIDES)


def completed(folder: Path) -> dict[str, bytes]:
    """What extract writes if nothing stops it."""
    return alone(folder, "extract", *OVERRIDES, out=OUT)


def committed(folder: Path) -> dict[str, int]:
    """When each finished shard was written."""
    building = {record.with_suffix(".tar") for record in folder.glob(".scratch/extract/*/shards/*-*-*.json")}
    return {tar.name: tar.stat().st_mtime_ns for tar in building if tar.exists()}


def shards_of(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(out).items() if not name.startswith("config.")}


def surviving(folder: Path) -> dict[str, int]:
    """When each shard that no kill has lost was written; one that comes while scratch is removed leaves all in the output."""
    return {**written(folder), **committed(folder)}


def written(folder: Path) -> dict[str, int]:
    return {tar.name: tar.stat().st_mtime_ns for tar in (folder / OUT).glob("*.tar")}


@pytest.fixture(scope="module")
def uninterrupted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float, float]:
    """What extract writes, how many seconds it takes until its first shard is there, and in all."""
    folder = workspace_of(finished, tmp_path_factory.mktemp("uninterrupted") / "run")
    began, process = time.monotonic(), started(folder)
    while not committed(folder) and process.poll() is None:
        time.sleep(0.01)
    first = time.monotonic() - began
    error = process.communicate()[1]
    assert process.returncode == 0, error.decode()
    return content(folder / OUT), first, time.monotonic() - began


def workspace_of(finished: Path, folder: Path) -> Path:
    for part in ("gin", "params.yaml", "data/prepared", "data/backbone"):
        source = finished / part
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, folder / part) if source.is_dir() else shutil.copy(source, folder / part)
    return folder


def test_a_killed_extraction_makes_no_finished_shard_again(finished, tmp_path, uninterrupted):
    """Killed again and again at random moments, each time a few shards further on."""
    expected, first, whole = uninterrupted
    shards = sum(name.endswith(".tar") for name in expected)
    assert shards > 100
    rng, interrupted, folder = random.Random(0), 0, workspace_of(finished, tmp_path / "run")
    while interrupted < KILLS:
        before = committed(folder)
        process = started(folder)
        try:
            process.communicate(timeout=rng.uniform(0.9 * first, first + 1.5 * (whole - first) / KILLS))
            first, whole = 0.8 * first, 0.8 * whole  # the machine has become faster
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            interrupted += 1
        after = surviving(folder)
        assert {name: after.get(name) for name in before} == before
        if (folder / OUT / "index.json").exists():  # written last: everything is there
            assert shards_of(folder / OUT) == {name: expected[name] for name in expected if not name.startswith("config.")}
    before = committed(folder)
    assert completed(folder) == expected
    assert {name: written(folder)[name] for name in before} == before
    assert not (folder / ".scratch").exists()


def test_a_kill_at_any_moment_ends_with_the_same_bytes(finished, tmp_path, uninterrupted):
    """Each time from the beginning, up to its very end."""
    expected, first, whole = uninterrupted
    rng, interrupted, folder = random.Random(1), 0, workspace_of(finished, tmp_path / "run")
    while interrupted < KILLS // 2:
        process = started(folder)
        try:
            process.communicate(timeout=rng.uniform(first, whole))
            first, whole = 0.8 * first, 0.8 * whole
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            interrupted += 1
        before = committed(folder)
        assert completed(folder) == expected
        assert {name: written(folder)[name] for name in before} == before
        shutil.rmtree(folder / ".scratch", ignore_errors=True)
