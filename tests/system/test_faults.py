"""What can happen to some of several processes on the way: the job ends or starts anew, nothing of it stays alive, and what runs
next ends with the bytes of an uninterrupted run. `make test-slow`; SLOTLOOP_KILLS=30 kills that often at random.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support.dvc import content, marked, snapshot, wait_until
from tests.support.jobs import TORCHRUN, alone, completed, ended, forked, member, nothing_left, running, standing_still, start
from tests.system.test_processes import MICRO, OUT, OVERRIDES, STAGE

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a signal of Linux")
STEPS = 30
TRAINING = (
    *MICRO,
    f"loop.fit.steps={STEPS}",
    "loop.fit.save_every=1",
    "loop.fit.validate_every=7",
    "loop.fit.log_every=5",
)
KILLS = int(os.environ.get("SLOTLOOP_KILLS", "3"))
WHOM = (("0",), ("1",), ("0", "1"), ("launcher",))


@pytest.fixture
def job(copy_of):
    """A workspace of which nothing runs any longer at the end."""
    with nothing_left(copy_of) as folder:
        yield folder


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> dict[str, bytes]:
    """What warmup writes with ``TRAINING``."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    shutil.copytree(finished, folder, symlinks=True)
    return alone(folder, "warmup", *TRAINING)


def midway(folder, act, processes="2", training=TRAINING, **how):
    """A warmup of several processes; ``act`` is done to it a few steps further on than where it began, while all stand still."""
    for _ in range(20):
        target = snapshot(folder, "warmup") + 3
        process = start(folder, "warmup", *training, SLOTLOOP_PROCESSES=processes, **how)
        moment = partial(lambda step, job: snapshot(folder, "warmup") >= step or job.poll() is not None, target, process)
        wait_until(moment, "warmup trains", pause=0.01)
        with standing_still(every := running(folder)):
            if target <= snapshot(folder, "warmup") <= STEPS - 5:  # so many are left, to end before they are done
                stays = act(process) or ()
                every[:] = [one for one in every if one not in stays]
                return process
        assert ended(process) == (0, "")  # this test was too slow for it: from the beginning
    pytest.fail("the stage always ended before anything was done to it")


def kill(folder, *ranks):
    for process in [member(folder, rank) for rank in ranks]:
        process.kill()


def nothing_runs(folder):
    wait_until(lambda: not running(folder), "all processes end")


def keys(folder):
    return [path.name for path in (folder / ".scratch/warmup").iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "4"])
def test_what_two_processes_began_any_number_ends(job, uninterrupted, processes):
    process = midway(job, lambda _: kill(job, 0, 1))
    assert ended(process)[0] == 1
    nothing_runs(job)
    [key], reached = keys(job), snapshot(job, "warmup")
    if processes == "4":
        process = midway(job, lambda launcher: launcher.terminate(), processes)
        assert ended(process)[0] == 143
        assert keys(job) == [key] and snapshot(job, "warmup") > reached
    assert completed(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES=processes) == uninterrupted
    assert not (job / ".scratch").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_with_its_name(job, uninterrupted, rank):
    process = midway(job, lambda _: kill(job, rank))
    told = f"error: process {rank} of 2 was ended by SIGKILL, the others were stopped; run it again to continue\n"
    assert ended(process) == (1, told)
    assert not running(job)
    assert completed(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES="2") == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number", "status"),
    [
        ("launcher", signal.SIGTERM, 143),
        ("0", signal.SIGTERM, 143),
        ("1", signal.SIGTERM, 143),
        ("launcher", signal.SIGUSR1, 143),
        ("1", signal.SIGUSR1, 143),
        ("launcher", signal.SIGINT, 130),
    ],
)
def test_a_job_that_is_asked_to_end_saves_its_last_step(job, uninterrupted, whom, number, status):
    process = midway(job, lambda launcher: (launcher if whom == "launcher" else member(job, int(whom))).send_signal(number))
    code, error = ended(process)
    assert code == status and not running(job)
    step = snapshot(job, "warmup")
    if number != signal.SIGINT:
        assert error == f"error: warmup: {number.name} after step {step} of {STEPS}; run it again to continue from there\n"
    else:
        assert error == "interrupted\n"
    assert alone(job, "warmup", *TRAINING) == uninterrupted


@linux
@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(job, uninterrupted):
    process = midway(job, lambda launcher: launcher.kill())
    ended(process)
    nothing_runs(job)
    assert snapshot(job, "warmup") < STEPS, "the job went on to its end"
    assert alone(job, "warmup", *TRAINING) == uninterrupted


@linux
@pytest.mark.slow
def test_random_kills_leave_no_orphan_and_change_no_byte(job, uninterrupted):
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        began = time.monotonic()
        assert completed(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES="2") == uninterrupted
        assert not (job / ".scratch").exists()
        whole = time.monotonic() - began
        process, saving = start(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES="2"), kills % 3 == 0
        if saving:
            wait_until(lambda job_of=process: is_saving(job) or job_of.poll() is not None, "a snapshot is written", pause=0.0)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.1, 0.97) * whole)
        with standing_still(running(job)):
            kills += (not saving or is_saving(job)) and struck(job, process, rng.choice(WHOM))
        assert len(ended(process)[1].splitlines()) <= 1
        nothing_runs(job)
        unfinished = (job / "outputs/warmup/unfinished").exists() or not (job / "outputs/warmup/model.safetensors").exists()
        assert unfinished or content(job / "outputs/warmup").items() <= uninterrupted.items()
    assert completed(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES="2") == uninterrupted


def is_saving(folder):
    """Whether a run writes a snapshot that is not its first."""
    return bool(snapshot(folder, "warmup") and any((folder / ".scratch/warmup").glob("*/warmup/writing")))


def struck(folder, launcher, whom):
    """Kill what started a job, or those of its processes that have begun; whether there was anything to kill."""
    if whom == ("launcher",):
        if alive := launcher.poll() is None:
            launcher.kill()
        return alive
    there = []
    for process in running(folder):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANK") in whom:
                process.kill()
                there.append(process)
    return bool(there)


OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # for each attempt, as docs/scaling.md has users export


@pytest.mark.slow
def test_torchrun_starts_a_job_anew_of_which_a_process_was_killed(job, uninterrupted):
    command = (*TORCHRUN[:2], "--max-restarts=2", *TORCHRUN[2:])
    process = midway(job, lambda _: kill(job, 0), command=command, **OWN_STORE)
    status, error = ended(process)
    assert status == 0, error
    assert content(job / "outputs/warmup") == uninterrupted
    assert not running(job) and not (job / ".scratch").exists()


@pytest.mark.slow
def test_a_machine_that_is_lost_leaves_the_work_to_the_one_that_has_the_store(job, uninterrupted):
    where = ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{a_port()}", "--rdzv-id=job")
    many = ("--nnodes=1:2", "--nproc-per-node=2", "--max-restarts=3")

    def machine(name, has_store):
        command = (TORCHRUN[0], *many, *where, f"--rdzv-conf=last_call_timeout=3,is_host={has_store}", "-m", "stages")
        return start(job, "warmup", *TRAINING, command=command, TEST_MACHINE=name, **OWN_STORE)

    stays, goes = machine("a", 1), machine("b", 0)
    wait_until(lambda: snapshot(job, "warmup") >= 3 or stays.poll() is not None, "warmup trains", pause=0.01)
    with standing_still(running(job)):
        assert 3 <= snapshot(job, "warmup") < STEPS - 5
        assert {process.environ().get("WORLD_SIZE") for process in running(job)} == {None, "4"}
        for process in marked("TEST_MACHINE", "b"):
            process.kill()
    goes.communicate()
    status, error = ended(stays)
    assert status == 0, error
    assert content(job / "outputs/warmup") == uninterrupted
    assert not running(job) and not (job / ".scratch").exists()


def a_port():
    """A port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def error_of_hung(folder, rank, processes="2", training=TRAINING):
    """The line in which a warmup ends one of whose processes hangs on the way."""
    process = midway(folder, lambda _: [member(folder, rank)], processes, training, SLOTLOOP_TIMEOUT="5")
    hung = member(folder, rank)
    wait_until(partial(is_asked_to_end, hung), "the others have given up, and the job is stopped")
    hung.resume()  # else it is killed two minutes later
    status, error = ended(process)
    assert status == 1, error
    nothing_runs(folder)
    return error


@linux
@pytest.mark.slow
def test_a_process_that_hangs_is_named_also_if_it_has_the_store(job, uninterrupted):
    error = error_of_hung(job, 0)
    assert re.fullmatch(r"error: lost process 0 of 2 \(Timed out waiting 5000ms for .*\); run it again to continue\n", error)
    assert completed(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES="2") == uninterrupted


SHARED = (*TRAINING, 'warmup.run.unfreeze=["refiner", "backbone.blocks.1"]', "loop.fit.sharding=@sharding.fully_sharded")


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("rank", "processes"), [(0, "2"), (1, "2"), (0, "4"), (2, "4")])
def test_a_process_that_hangs_is_named_where_layers_are_shared_out(job, rank, processes):
    """The others wait in sums that are not this project's."""
    error = error_of_hung(job, rank, processes, SHARED)
    assert re.fullmatch(rf"error: lost process {rank} of {processes} \(.*\); run it again to continue\n", error)
    assert completed(job, "warmup", *SHARED, SLOTLOOP_PROCESSES=processes)


def is_asked_to_end(process):
    """Whether SIGTERM has been sent to a process that stands still."""
    pending = re.search(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending[1], 16) & 1 << signal.SIGTERM - 1)


POISON = """
import os
from dataclasses import replace
from components.batch import Batch

received, taken = Batch.to, []

def poisoned(batch, device):
    taken.append(batch)
    moved = received(batch, device)
    return replace(moved, hidden=moved.hidden * float("nan")) if len(taken) > 20 else moved

if os.environ["RANK"] == "1":
    Batch.to = poisoned
"""


def test_numbers_that_are_not_finite_in_one_process_end_all_at_the_same_step(copy_of, uninterrupted):
    ends = forked(POISON + STAGE.format(["warmup", *TRAINING]), 2, copy_of)
    assert [process.returncode for process in ends] == [1, 1]
    first, second = [process.stderr.removeprefix(f"error: process {rank}: ") for rank, process in enumerate(ends)]
    assert first == second
    assert re.fullmatch(r"warmup: the loss became nan at step \d+; nothing was saved yet\. Lower .*\n", first)
    assert 1 <= snapshot(copy_of, "warmup") < STEPS
    assert alone(copy_of, "warmup", *TRAINING) == uninterrupted


def has_begun(folder, rank):
    """Whether a job has a process of a number."""
    with contextlib.suppress(ValueError):
        return bool(member(folder, rank))
    return False


@linux
@pytest.mark.slow
def test_one_process_whose_disk_refuses_ends_the_job_in_a_line(job):
    small = OVERRIDES["extract"]
    expected = completed(job, "extract", *small, out=OUT["extract"])
    process = start(job, "extract", *small, out=OUT["extract"], SLOTLOOP_PROCESSES="2")
    wait_until(partial(has_begun, job, 1), "the second process is there")
    member(job, 1).rlimit(psutil.RLIMIT_FSIZE, (10_000, 10_000))
    status, error = ended(process)
    assert status == 1 and not running(job)
    assert re.fullmatch(
        r"error: \S+/shards/\S+ cannot be written: it would be larger than .*; put it right, or name another place\n", error
    )
    assert completed(job, "extract", *small, out=OUT["extract"], SLOTLOOP_PROCESSES="2") == expected
