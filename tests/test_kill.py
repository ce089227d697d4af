"""kill -9 at random moments: the rerun ends with the bytes of an uninterrupted run. `make test-slow`."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
KILLS = 10


def start(folder: Path, stage: str, *overrides: str) -> subprocess.Popen:
    """A stage as DVC starts it: a process of its own, in the workspace."""
    env = {**os.environ, "DVC_STAGE": stage, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages", stage, *overrides]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_killed_stage_continues_to_the_same_bytes(copy_of, stage):
    overrides = ("loop.fit.steps=40", "loop.fit.save_every=1", "loop.fit.validate_every=7", "loop.fit.log_every=5")
    out, rng = copy_of / "outputs" / stage, random.Random(0)
    shutil.rmtree(out)
    began = time.monotonic()
    first = start(copy_of, stage, *overrides)
    error = first.communicate()[1]
    assert first.returncode == 0, error.decode()
    whole, expected = time.monotonic() - began, content(out)
    assert not (copy_of / ".scratch").exists()  # a finished stage leaves nothing behind
    interrupted = 0
    for _ in range(KILLS):
        shutil.rmtree(out)
        process = start(copy_of, stage, *overrides)
        try:
            process.communicate(timeout=rng.uniform(0.5, 0.97) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            interrupted += 1
        process.communicate()
        shutil.rmtree(out, ignore_errors=True)  # as DVC does before it runs a stage again
        again = start(copy_of, stage, *overrides)
        error = again.communicate()[1]
        assert again.returncode == 0, error.decode()
        assert content(out) == expected
    assert interrupted >= KILLS // 2
