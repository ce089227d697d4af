"""Extraction killed at any moment: finished shards are never made again, and it ends with the bytes of an uninterrupted run."""

import contextlib
import glob
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.dvc import content, wait_until
from tests.support.jobs import alone, start

pytestmark = pytest.mark.slow
KILLS = 10
ATTEMPTS = 100  # one for which the extraction was too fast, or this test too slow, does not count
DRAWS = 12
OVERRIDES = (f"extract.run.draws={DRAWS}", "extract.run.batch_size=2", "extract.run.shard_bytes=20_000")
OUT = "data/shards"


def started(folder: Path) -> subprocess.Popen[str]:
    """extract as DVC starts it: its output removed."""
    shutil.rmtree(folder / OUT, ignore_errors=True)
    return start(folder, "extract", *OVERRIDES)


def completed(folder: Path) -> dict[str, bytes]:
    """What extract writes if nothing stops it."""
    return alone(folder, "extract", *OVERRIDES, out=OUT)


def times(tars: str) -> dict[str, int]:
    """When each of these files was written; those that vanish meanwhile are left out."""
    seen = {}
    for tar in map(Path, glob.glob(tars)):  # unlike Path's, at ease with what vanishes
        with contextlib.suppress(FileNotFoundError):
            seen[tar.name] = tar.stat().st_mtime_ns
    return seen


def committed(folder: Path) -> dict[str, int]:
    """When each finished shard was written."""
    records = glob.glob(f"{folder}/.scratch/extract/*/shards/*-*-*.json")
    return {name: at for record in records for name, at in times(f"{record.removesuffix('.json')}.tar").items()}


def written(folder: Path) -> dict[str, int]:
    return times(f"{folder / OUT}/*.tar")


def shards_of(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(out).items() if not name.startswith("config.")}


def surviving(folder: Path) -> dict[str, int]:
    """When each shard that no kill has lost was written: one that has ended removes its scratch, and may be killed at that."""
    return {**written(folder), **committed(folder)}


def complete(folder: Path) -> bool:
    """Whether everything is in its place: what is written last is there."""
    return (folder / OUT / "index.json").exists()


def killed(folder: Path, moment: Callable[[], bool], delay: float) -> bool:
    """Kill an extraction some seconds after a moment; False if it ended by itself first."""
    process = started(folder)
    wait_until(lambda: moment() or process.poll() is not None, "the extraction comes so far", pause=0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    error = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), error
    return process.returncode != 0


@pytest.fixture(scope="module")
def uninterrupted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What extract writes."""
    expected = completed(workspace_of(finished, tmp_path_factory.mktemp("uninterrupted") / "run"))
    assert sum(name.endswith(".tar") for name in expected) > 100
    return expected


def workspace_of(finished: Path, folder: Path) -> Path:
    for part in ("gin", "params.yaml", "data/prepared", "data/backbone"):
        source = finished / part
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, folder / part) if source.is_dir() else shutil.copy(source, folder / part)
    return folder


def test_a_killed_extraction_makes_no_finished_shard_again(finished, tmp_path, uninterrupted):
    """Killed again and again at random moments, the start of the interpreter included, each time some shards further on."""
    expected, rng, folder = uninterrupted, random.Random(0), workspace_of(finished, tmp_path / "run")
    further = sum(name.endswith(".tar") for name in expected) // KILLS
    interrupted = resumed = 0
    for _ in range(ATTEMPTS):
        before = committed(folder)
        target = len(before) + rng.choice((0, *range(1, further)))
        moment = partial(lambda most: len(committed(folder)) >= most or complete(folder), target)
        interrupted += killed(folder, moment, delay=rng.uniform(0, 0.02))
        after = surviving(folder)
        assert {name: after.get(name) for name in before} == before
        resumed += bool(before) and len(after) > len(before)
        if complete(folder):
            assert shards_of(folder / OUT) == {name: expected[name] for name in expected if not name.startswith("config.")}
        if interrupted == KILLS:
            break
    assert interrupted == KILLS and resumed
    before = committed(folder)
    assert completed(folder) == expected
    assert {name: written(folder)[name] for name in before} == before
    assert not (folder / ".scratch").exists()


def test_a_kill_at_any_moment_ends_with_the_same_bytes(finished, tmp_path, uninterrupted):
    """Each time from the beginning: while shards are made, while they come to their place, and when all have."""
    expected, rng, folder = uninterrupted, random.Random(1), workspace_of(finished, tmp_path / "run")
    shards = sum(name.endswith(".tar") for name in expected)

    def so_far() -> int:
        return 2 * shards if complete(folder) else len(committed(folder)) + len(written(folder))

    for target in (rng.randint(1, shards - 1), rng.randint(1, shards - 1), shards, rng.randint(shards, 2 * shards), 2 * shards):
        assert any(killed(folder, partial(lambda most: so_far() >= most, target), 0.0) for _ in range(ATTEMPTS))
        before = committed(folder)
        assert completed(folder) == expected
        assert {name: written(folder)[name] for name in before} == before
        shutil.rmtree(folder / ".scratch", ignore_errors=True)
