"""A child that asked for it ends with its parent, however that ends; SIGTERM is noted where work has to be saved first."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.machine.process import Interrupted, importing, termination_noted
from tests.conftest import ROOT

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
CHILD = "import time; from pipeline.machine.process import die_with_parent; {} print('ready', flush=True); time.sleep(3600)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a signal of Linux")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("asked", [True, False])
def test_a_child_ends_with_its_parent_if_it_asked(ending, asked):
    child = CHILD.format("die_with_parent();" if asked else "")
    command = [sys.executable, "-c", PARENT, child]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as parent:
        told = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        [pid] = told - {"ready"}
        found = psutil.Process(int(pid))
        parent.send_signal(ending)
        parent.wait(timeout=600)
        if asked:
            found.wait(timeout=600)
        else:
            time.sleep(0.3)
            assert found.is_running()
            found.kill()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def noticed():
    """Signals that reach what handles SIGTERM outside."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("outside"))
    yield seen
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_noted_within_the_block_and_goes_its_way_outside(noticed):
    with termination_noted() as came:
        assert not came()
        terminate()
        assert came() == "SIGTERM" and not noticed
        terminate()
        assert came() == "SIGTERM" and not noticed
    terminate()
    assert noticed == ["outside"]


def test_a_schedulers_warning_is_noted_like_sigterm():
    before = signal.getsignal(signal.SIGUSR1)
    with termination_noted() as came:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert came() == "SIGUSR1"
        terminate()
        assert came() == "SIGUSR1"  # the first says why
    assert signal.getsignal(signal.SIGUSR1) == before


def test_what_was_noted_is_forgotten_in_the_next_block(noticed):
    with termination_noted():
        terminate()
    with termination_noted() as came:
        assert not came()


def test_after_an_error_sigterm_goes_its_way_again(noticed):
    with pytest.raises(RuntimeError), termination_noted():
        raise RuntimeError
    terminate()
    assert noticed == ["outside"]


def test_blocks_within_each_other_note_for_the_inner_one(noticed):
    with termination_noted() as outer:
        with termination_noted() as inner:
            terminate()
        assert inner() and not outer()
        terminate()
        assert outer()
    assert not noticed


def test_in_a_thread_signals_are_left_alone(noticed):
    """Python lets the main thread alone change them."""
    told = []

    def work():
        with termination_noted() as came:
            told.append(came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    terminate()
    assert told == [""] and noticed == ["outside"]


def test_an_interruption_is_no_programmers_error():
    assert issubclass(Interrupted, UserError)


NOTING = """
from pipeline.machine.process import termination_noted
with termination_noted() as came:
    print("ready", flush=True)
    while not came():
        pass
    input()
print("came")
"""


def test_sigterm_that_comes_while_another_one_is_noted_hangs_nothing():
    """As when DVC dies, whose threads end one after the other and each send one."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", NOTING], env=env, text=True, **pipes) as child:
        assert child.stdout.readline() == "ready\n"
        for _ in range(50_000):
            child.send_signal(signal.SIGTERM)
        try:
            assert child.communicate("\n", timeout=600)[0] == "came\n"
        finally:
            child.kill()


@pytest.mark.parametrize("collecting", [True, False])
def test_imports_pause_the_garbage_collector_and_leave_it_as_it_was(collecting):
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
