"""Machines that run stages together by torchrun, one of which is given them and one of which follows: two launchers on this one, or
each in a network of its own.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.dvc import PATIENCE, bind, clone_to, content, dvc, environment, ran, snapshot, wait_until
from tests.support.jobs import MARK, PYTHON, alone, ended, nothing_left, running, start
from tests.support.network import two_machines
from tests.system.test_faults import a_port
from tests.system.test_processes import MICRO

pytestmark = pytest.mark.slow
LONG = (*MICRO, "loop.fit.steps=400", "loop.fit.save_every=1", "loop.fit.log_every=400")
TOO_MANY = ("ACCUMULATION=3", "BATCH=8")  # microbatches for two processes


@pytest.fixture
def job(copy_of):
    """A workspace of which nothing runs any longer at the end."""
    with nothing_left(copy_of) as folder:
        yield folder


@pytest.fixture
def options():
    """What torchrun is told on both machines."""
    where = f"--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{a_port()} --rdzv-id=job"
    return {"SLOTLOOP_TORCHRUN": f"--nnodes=2 --nproc-per-node=1 {where}"}


@contextlib.contextmanager
def following(folder: Path, env: dict[str, str], *before: str):
    """The process that follows, and the file of what it says."""
    said = folder.with_name("follow.txt")
    with said.open("wb") as file:
        process = subprocess.Popen([*before, *PYTHON, "follow"], cwd=folder, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


def follower(folder, options, *before, **variables):
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: str(folder)}
    env = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    return following(folder, {**env, **own, **options, **variables}, *before)


def training(job, options):
    """The leader of a warmup, on its way."""
    one = start(job, "warmup", *LONG, **options)
    wait_until(lambda: snapshot(job, "warmup") >= 3 or one.poll() is not None, "warmup trains", pause=0.01)
    return one


def stopped(process, number=signal.SIGTERM):
    """Status after a signal."""
    process.send_signal(number)
    return process.wait(PATIENCE)


@pytest.mark.parametrize(("leader", "other"), [("127.0.0.1", "localhost"), ("localhost", "127.0.0.1")])
def test_stages_one_after_another_write_the_bytes_of_one_process_also_after_one_that_failed(job, options, leader, other):
    """By their addresses torchrun counts the leader's machine first, or the other one."""
    expected = [alone(job, stage, *MICRO) for stage in ("warmup", "joint")]
    with follower(job, options, PET_LOCAL_ADDR=other) as (process, said):
        outputs = []
        for stage, overrides in (("warmup", MICRO), ("joint", TOO_MANY), ("joint", MICRO)):
            one = start(job, stage, *overrides, PET_LOCAL_ADDR=leader, **options)
            outputs.append((*one.communicate(timeout=PATIENCE), one.returncode))
            if not one.returncode:
                assert content(job / f"outputs/{stage}") == expected[stage == "joint"]
        assert stopped(process) == 0
    assert not running(job)
    assert [(error, status) for _, error, status in outputs[::2]] == [("", 0)] * 2
    assert all("step 3 validation" in text and "where python -m stages follow runs" in text for text, *_ in outputs[::2])
    failed = "2 processes cannot share 3 microbatches a step equally; set loop.fit.accumulation to a multiple"
    assert outputs[1][1].startswith(f"error: {failed}") and len(outputs[1][1].splitlines()) == 1 and outputs[1][2] == 2
    place = re.search(r"rdzv-endpoint=(\S+)", options["SLOTLOOP_TORCHRUN"])[1]
    first, warmup, again, error, joint, last = said.read_text().splitlines()
    assert (first, last) == (f"follow: waits for stages at {place}", "follow: ended")
    assert (warmup, joint) == tuple(f"follow: {stage} {' '.join(MICRO)}" for stage in ("warmup", "joint"))
    assert again == f"follow: joint {' '.join(TOO_MANY)}" and error.startswith(f"follow: {failed}")


@pytest.mark.parametrize("whom", ["follower", "leader"])
def test_a_signal_to_one_machine_saves_and_ends_both_and_leaves_no_orphan(job, options, whom):
    with follower(job, options) as (process, said):
        one = training(job, options)
        (process if whom == "follower" else one).terminate()
        status, error = ended(one)
        step = snapshot(job, "warmup")
        message = f"warmup: SIGTERM after step {step} of 400; run it again to continue from there\n"
        assert (status, error) == (143, f"error: {message}")
        if whom == "follower":
            assert process.wait(PATIENCE) == 0
        else:
            wait_until(lambda: said.read_text().splitlines()[2:], "the other machine has ended too")
            wait_until(lambda: [each.pid for each in running(job)] == [process.pid], "its processes have ended")
            assert stopped(process, signal.SIGINT) == 0
        assert said.read_text().endswith(f"follow: {message}follow: ended\n")
    assert not running(job)


def test_machines_in_different_networks_meet_at_the_address_of_the_first(job):
    expected = alone(job, "warmup", *MICRO)
    with two_machines() as machines:
        options = {"SLOTLOOP_TORCHRUN": f"--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint={machines[0].address} --rdzv-id=job"}
        first, second = ({"GLOO_SOCKET_IFNAME": each.cable, "PET_LOCAL_ADDR": each.address} for each in machines)
        with follower(job, options, *machines[1].entered, **second) as (process, said):
            elsewhere = start(job, "warmup", *MICRO, command=(*machines[1].entered, *PYTHON), **options, **second)
            message = f"error: SLOTLOOP_TORCHRUN: {machines[0].address}:29400 is no free port of this machine, where all meet (Conn"
            status, error = ended(elsewhere)
            assert status == 2 and error.startswith(message)
            one = start(job, "warmup", *MICRO, command=(*machines[0].entered, *PYTHON), **options, **first)
            assert ended(one) == (0, "")
            assert content(job / "outputs/warmup") == expected
            assert stopped(process) == 0
        assert said.read_text().splitlines()[1:] == [f"follow: warmup {' '.join(MICRO)}", "follow: ended"]
    assert not running(job)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a signal of Linux")
def test_a_follower_that_is_killed_leaves_nothing_running(job, options):
    with follower(job, options) as (process, _):
        one = training(job, options)
        process.kill()
        assert ended(one)[0] == 143
        wait_until(lambda: not running(job), "all processes end")


def test_dvc_notes_what_it_notes_of_one_process(tmp_path, options):
    folder = tmp_path / "slotloop"
    clone_to(folder, "smoke")
    params = folder / "params.yaml"
    for stage in ("warmup", "joint"):
        bind(params, stage, "{ACCUMULATION: 2, BATCH: 16}")
    dvc(folder, "repro", "joint")
    lock, bytes_of_one = (folder / "dvc.lock").read_text(), content(folder / "outputs")
    with following(folder, environment(folder, **options)) as (process, said):
        assert ran(dvc(folder, "repro", "--force", "--single-item", "warmup", "joint", **options)) == ["warmup", "joint"]
        assert stopped(process) == 0
    assert len(said.read_text().splitlines()) == 4
    assert (folder / "dvc.lock").read_text() == lock and content(folder / "outputs") == bytes_of_one
    assert ran(dvc(folder, "repro", "joint")) == []
