"""A machine that is cut off from the other: packets vanish and no connection is closed, so that only waiting tells."""

import re
import shutil
from collections.abc import Callable

import pytest

from tests.support.dvc import content, snapshot, wait_until
from tests.support.jobs import TORCHRUN, alone, ended, nothing_left, running, standing_still, start
from tests.support.network import Machine, two_machines
from tests.system.test_faults import OWN_STORE, STEPS, TRAINING

PORT = 29400  # in a network of its own every port is free


@pytest.fixture
def job(copy_of):
    """A workspace without a warmup, of which nothing runs any longer at the end."""
    shutil.rmtree(copy_of / "outputs/warmup")
    with nothing_left(copy_of) as folder:
        yield folder


@pytest.fixture
def machines():
    with two_machines() as both:
        yield both


def cut_off(job, machines: tuple[Machine, Machine], options: Callable[[int], tuple[str, ...]]):
    """What ``torchrun`` started on each of two machines, of which the cable is pulled while they train together."""
    started = []
    for number, machine in enumerate(machines):
        command = (*machine.entered, TORCHRUN[0], "--nproc-per-node=1", *options(number), "-m", "stages")
        how = {"GLOO_SOCKET_IFNAME": machine.cable, "SLOTLOOP_TIMEOUT": "20", **OWN_STORE}
        started.append(start(job, "warmup", *TRAINING, command=command, **how))
    wait_until(lambda: snapshot(job, "warmup") >= 3 or started[0].poll() is not None, "warmup trains", pause=0.01)
    with standing_still(running(job)):
        assert 3 <= snapshot(job, "warmup") < STEPS - 5
        assert {process.environ().get("WORLD_SIZE") for process in running(job)} == {None, "2"}
        machines[0].pull()
    return started


@pytest.mark.slow
def test_machines_that_are_cut_off_each_name_the_other_and_end(job, machines):
    where = ("--nnodes=2", f"--master-addr={machines[0].address}", f"--master-port={PORT}")
    for number, one in enumerate(cut_off(job, machines, lambda number: (*where, f"--node-rank={number}"))):
        status, error = ended(one)
        lost = rf"^error: process {number}: lost process {1 - number} of 2 \(Timed out waiting 20000ms .*\); run it again"
        assert status == 1 and re.search(lost, error, re.MULTILINE), error
    assert not running(job)
    assert 3 <= snapshot(job, "warmup") < STEPS
    resumed = alone(job, "warmup", *TRAINING)
    assert not (job / ".scratch").exists()
    assert resumed == alone(job, "warmup", *TRAINING)


@pytest.mark.slow
def test_the_machine_that_has_the_store_goes_on_alone_when_the_other_is_cut_off(job, machines):
    there = f"--rdzv-endpoint={machines[0].address}:{PORT}"
    where = ("--nnodes=1:2", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=job", there)

    def options(number):
        return (*where, f"--rdzv-conf=last_call_timeout=3,is_host={1 - number}", f"--local-addr={machines[number].address}")

    machines[1].give_up_soon()  # torchrun waits for the store's answer as long as the system does
    stays, goes = cut_off(job, machines, options)
    status, error = ended(stays)
    assert status == 0, error
    written = content(job / "outputs/warmup")
    assert ended(goes)[0] == 1
    assert not running(job) and not (job / ".scratch").exists()
    assert content(job / "outputs/warmup") == written == alone(job, "warmup", *TRAINING)
