"""serve: a trunk in a process of its own, from which warmup learns the same bytes as from one that it loads."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from stages.__main__ import main
from tests.conftest import ROOT
from tests.support.dvc import PATIENCE
from tests.support.jobs import alone, start

COMMAND = (sys.executable, "-m", "stages", "serve")
REMOTE, LIVE = "warmup.run.states=@sources.remote", "warmup.run.states=@sources.live"


@contextmanager
def serving(folder, address="127.0.0.1:0"):
    """The process, and where it listens."""
    process = subprocess.Popen(
        [*COMMAND, f"--address={address}"], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert "SLOTLOOP_TRUNKS=" in line, line + process.stdout.read()
        yield process, line.split("SLOTLOOP_TRUNKS=")[1].strip()
    finally:
        process.kill()
        process.communicate()


def ended(process, number):
    """Status and last words after a signal."""
    process.send_signal(number)
    text = process.communicate(timeout=PATIENCE)[0]
    return process.returncode, text


def test_warmup_learns_the_same_bytes_as_from_a_live_trunk(copy_of, monkeypatch):
    expected = alone(copy_of, "warmup", LIVE)
    with serving(copy_of) as (process, address):
        monkeypatch.setenv("SLOTLOOP_TRUNKS", address)
        ours = alone(copy_of, "warmup", REMOTE)
        status, text = ended(process, signal.SIGTERM)
    for name in ("model.safetensors", "curves.csv", "validation.csv"):
        assert ours[name] == expected[name], name
    assert status == 0 and text.splitlines() == ["serve: ended after 11 requests, 368 sequences"]


def test_ctrl_c_ends_it(finished):
    with serving(finished) as (process, _):
        assert ended(process, signal.SIGINT) == (0, "serve: ended after 0 requests, 0 sequences\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--address=7700"], "--address: '7700' is no address; expected HOST:PORT"),
        (["--device=tpux"], "torch does not know; use 'cpu' or 'cuda'"),
        (["--backbone=elsewhere"], "elsewhere/model.json does not exist"),
        (["--backbone=outputs/warmup"], "not a backbone"),
        (["--address=203.0.113.1:7700"], "203.0.113.1:7700 cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_one_line(finished, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(finished)
    assert main(["serve", *flags]) in (1, 2)
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and said in err and err.count("\n") == 1 and not out


def test_without_an_address_warmup_says_how_to_start_one(copy_of, monkeypatch, capsys):
    monkeypatch.chdir(copy_of)
    assert main(["warmup", REMOTE]) == 2
    assert "SLOTLOOP_TRUNKS names none; start one by python -m stages serve" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trunk_that_is_killed_and_started_anew_changes_nothing_for_two_processes(copy_of):
    settings = ("ACCUMULATION=2", "BATCH=16", "WARMUP_STEPS=40")
    expected = alone(copy_of, "warmup", LIVE, *settings)
    with serving(copy_of) as (_, address):
        job = start(copy_of, "warmup", REMOTE, *settings, SLOTLOOP_PROCESSES="2", SLOTLOOP_TRUNKS=address)
        until = time.monotonic() + PATIENCE
        while not (copy_of / "outputs/warmup/validation.csv").is_file() and time.monotonic() < until:
            time.sleep(0.01)
    time.sleep(1)
    assert job.poll() is None
    with serving(copy_of, address):
        error = job.communicate(timeout=PATIENCE)[1]
    assert job.returncode == 0, error
    for name in ("model.safetensors", "curves.csv", "validation.csv"):
        assert (copy_of / "outputs/warmup" / name).read_bytes() == expected[name], name
