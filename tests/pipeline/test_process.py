"""A child that asked for it ends with its parent, however that ends; one that did not ask goes on."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import ROOT

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
CHILD = "import time; from pipeline.process import die_with_parent; {} print('ready', flush=True); time.sleep(60)"


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
        parent.wait(timeout=30)
        if asked:
            found.wait(timeout=30)
        else:
            time.sleep(0.3)
            assert found.is_running()
            found.kill()
