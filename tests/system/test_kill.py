"""Killed at any moment, alone or with DVC: what runs next ends with the bytes of an uninterrupted run. `make test-slow`."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipeline.machine.process import INTERRUPTED
from tests.conftest import workspace
from tests.support.dvc import (
    LONG,
    LONG_WARMUP,
    PATIENCE,
    bind,
    content,
    dvc,
    finished_clone,
    locked,
    long_warmup,
    nothing_left,
    processes,
    ran,
    snapshot,
    start_dvc,
    steps_of,
    wait_until,
)
from tests.support.jobs import alone, completed, start
from tests.support.once import shared_folder

pytestmark = pytest.mark.slow
KILLS = 10
RANDOM = 5  # kills at any moment, the start of the interpreter included, each followed by a run to the end
STEPS = 40
OVERRIDES = (f"loop.fit.steps={STEPS}", "loop.fit.save_every=1", "loop.fit.validate_every=7", "loop.fit.log_every=5")


def stopped(process: subprocess.Popen[str], number: signal.Signals, moment: Callable[[], object], delay: float = 0.0) -> bool:
    """Poll for a moment, freeze the process, and if it still is that moment send the signal.

    Returns:
        False if the process ended by itself first.
    """
    deadline = time.monotonic() + PATIENCE
    sent = False
    while not sent and process.poll() is None:
        assert time.monotonic() < deadline
        if moment():
            time.sleep(delay)
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: process.poll() is not None or is_frozen(process), "the process stands still", pause=0.0)
            if sent := bool(moment()):
                process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)  # who never sleeps is kept waiting for long, once it is another one's turn
    process.communicate()
    return process.returncode == (INTERRUPTED if number == signal.SIGTERM else -number)


def repeated(times: int, attempt: Callable[[], bool]) -> None:
    """Attempts until so many have met their moment: one for which the stage was too fast, or this test too slow, does not count."""
    for _ in range(50 * times):
        times -= attempt()
        if not times:
            return
    pytest.fail("the stage always ended before the signal arrived")


def is_frozen(process: subprocess.Popen[str]) -> bool:
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


@pytest.fixture(scope="module")
def uninterrupted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What warmup writes with ``OVERRIDES``."""
    folder = workspace(tmp_path_factory.mktemp("uninterrupted") / "run", "smoke")
    shutil.copytree(finished / "data", folder / "data")
    return alone(folder, "warmup", *OVERRIDES)


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_killed_stage_continues_to_the_same_bytes(copy_of, stage):
    rng = random.Random(0)
    began = time.monotonic()
    expected = completed(copy_of, stage, *OVERRIDES)
    whole = time.monotonic() - began
    assert not (copy_of / ".scratch").exists()  # a finished stage leaves nothing behind
    interrupted = 0
    while interrupted < RANDOM:
        process = start(copy_of, stage, *OVERRIDES)
        try:
            process.communicate(timeout=rng.uniform(0.5, 0.97) * whole)
            assert process.returncode == 0
            whole *= 0.8  # the machine has become faster
            continue
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            interrupted += 1
        process.communicate()
        assert alone(copy_of, stage, *OVERRIDES) == expected


def reached(folder: Path, step: int) -> bool:
    return snapshot(folder, "warmup") >= step


def writing(folder: Path, step: int = 0) -> bool:
    return reached(folder, step) and any((folder / ".scratch" / "warmup").glob("*/warmup/writing"))


def test_a_stage_that_is_asked_to_end_continues_too(copy_of, uninterrupted):
    rng = random.Random(1)

    def attempt() -> bool:
        moment = partial(reached, copy_of, snapshot(copy_of, "warmup") + rng.randint(1, 8))
        return stopped(start(copy_of, "warmup", *OVERRIDES), signal.SIGTERM, moment, rng.uniform(0, 0.05))

    repeated(3, attempt)
    assert snapshot(copy_of, "warmup") > 0
    assert alone(copy_of, "warmup", *OVERRIDES) == uninterrupted


def test_a_stage_that_is_asked_to_end_loses_no_step(copy_of):
    seldom = (f"loop.fit.steps={STEPS}", "loop.fit.save_every=1000", "loop.fit.validate_every=1000", "loop.fit.log_every=1")
    told, error = [], ""

    def attempt() -> bool:
        nonlocal told, error
        shutil.rmtree(copy_of / ".scratch", ignore_errors=True)
        with start(copy_of, "warmup", *seldom) as process:
            lines = "".join(itertools.takewhile(lambda line: not line.startswith("warmup: step 5/"), process.stdout))
            process.terminate()
            rest, error = process.stdout.read(), process.stderr.read()
        told = [*steps_of(lines, "warmup"), 5, *steps_of(rest, "warmup")]
        assert told == list(range(1, len(told) + 1))
        assert len(told) == STEPS or process.returncode == INTERRUPTED
        return len(told) < STEPS

    repeated(1, attempt)
    assert error == f"error: warmup: SIGTERM after step {len(told)} of {STEPS}; run it again to continue from there\n"
    assert snapshot(copy_of, "warmup") == len(told)
    process = start(copy_of, "warmup", *seldom)
    rest, _ = process.communicate()
    assert process.returncode == 0 and steps_of(rest, "warmup") == list(range(len(told) + 1, STEPS + 1))
    continued = content(copy_of / "outputs/warmup")
    assert alone(copy_of, "warmup", *seldom) == continued


def test_a_training_run_resumed_ten_times_under_changing_reader_threads_gives_the_uninterrupted_runs_curves(copy_of):
    steps = 4 * STEPS  # ten kills, and room for the steps that pass before each of them arrives
    settings = (*OVERRIDES[1:], f"loop.fit.steps={steps}")
    expected = alone(copy_of, "warmup", *settings)
    readers, resumed = itertools.cycle("0124"), 0

    def attempt() -> bool:
        nonlocal resumed
        before = snapshot(copy_of, "warmup")
        process = start(copy_of, "warmup", *settings, SLOTLOOP_READERS=next(readers))
        killed = stopped(process, signal.SIGKILL, partial(reached, copy_of, before + 2))
        assert not killed or before + 2 <= snapshot(copy_of, "warmup")
        resumed = resumed + 1 if killed else 0  # one that has ended by itself leaves nothing to be resumed
        return resumed == KILLS

    repeated(1, attempt)
    finished = completed(copy_of, "warmup", *settings, SLOTLOOP_READERS="4")
    assert finished["curves.csv"].count(b"\n") == steps + 1
    assert finished == expected


def test_a_kill_while_a_snapshot_is_written(copy_of, uninterrupted):
    def attempt() -> bool:
        moment = partial(writing, copy_of, snapshot(copy_of, "warmup") + 2)  # by then an earlier kill's leftovers are gone
        return stopped(start(copy_of, "warmup", *OVERRIDES), signal.SIGKILL, moment) and writing(copy_of)

    repeated(4, attempt)
    assert alone(copy_of, "warmup", *OVERRIDES) == uninterrupted
    assert not (copy_of / ".scratch").exists()


def test_a_kill_between_the_last_snapshot_and_the_end(copy_of, uninterrupted):
    def attempt() -> bool:
        killed = stopped(start(copy_of, "warmup", *OVERRIDES), signal.SIGKILL, partial(reached, copy_of, STEPS))
        return killed and reached(copy_of, STEPS)

    repeated(1, attempt)
    assert alone(copy_of, "warmup", *OVERRIDES) == uninterrupted


def test_another_learning_rate_starts_fresh(copy_of, uninterrupted):
    other = (*OVERRIDES, "optim.adamw.lr=5e-4")
    expected = alone(copy_of, "warmup", *other)
    assert expected["curves.csv"] != uninterrupted["curves.csv"]
    repeated(1, lambda: stopped(start(copy_of, "warmup", *OVERRIDES), signal.SIGKILL, partial(reached, copy_of, 10)))
    kept = snapshot(copy_of, "warmup")
    assert completed(copy_of, "warmup", *other) == expected
    assert snapshot(copy_of, "warmup") == kept >= 10  # the killed run's, untouched


def interrupted_repro(folder: Path, kill: Callable[[int, int], None], number: signal.Signals, shell: str) -> int:
    """Signal ``dvc repro warmup`` a few steps further on, wait until nothing runs; the step from which it can continue."""
    target = snapshot(folder, "warmup") + 5
    process = start_dvc(folder, "repro", "warmup", SHELL=shell)
    wait_until(lambda: reached(folder, target) or process.poll() is not None, "warmup trains")
    assert process.poll() is None
    kill(process.pid, number)
    process.wait()
    wait_until(lambda: not processes(folder), "the stage ends")
    step = snapshot(folder, "warmup")
    assert target <= step < LONG, "the stage did not end with DVC, or lost its state"
    return step


@pytest.fixture
def clone(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished clone in which warmup is to be trained for ``LONG`` steps."""
    with nothing_left(finished_clone(shared_folder(tmp_path_factory), tmp_path / "slotloop")) as folder:
        bind(folder / "params.yaml", "warmup", LONG_WARMUP)
        yield folder


def test_dvc_killed_alone_or_with_its_stage_continues_without_help(clone, tmp_path_factory):
    step = 0
    for kill, number in itertools.product((os.killpg, os.kill), (signal.SIGKILL, signal.SIGTERM)):
        step = interrupted_repro(clone, kill, number, shutil.which("bash") or "/bin/sh")
    output = dvc(clone, "repro", "warmup")
    assert ran(output) == ["warmup"] and steps_of(output, "warmup") == list(range(step + 1, LONG + 1))
    expected = long_warmup(shared_folder(tmp_path_factory))
    assert content(clone / "outputs/warmup") == content(expected / "outputs/warmup")
    assert locked(clone, "warmup") == locked(expected, "warmup")
    assert not (clone / ".scratch").exists()


# DVC takes /bin/sh where SHELL is not set; dash (Debian, Ubuntu) would stay between it and the stage but for `exec` in dvc.yaml.
def test_a_shell_between_dvc_and_its_stage_keeps_nothing_alive(clone):
    interrupted_repro(clone, os.kill, signal.SIGKILL, "/bin/sh")
