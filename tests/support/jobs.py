"""Stages as processes of their own, one or several, for the tests that watch and stop them."""

import contextlib
import io
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, run_stages
from tests.support.dvc import PATIENCE, content, marked, wait_until

MARK = "SLOTLOOP_TEST_FOLDER"  # by which the processes of a folder are found
PYTHON = (sys.executable, "-m", "stages")
STREAMS = ("out", "error")
TORCHRUN = (str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node=2", "-m", "stages")


def start(
    folder: Path, stage: str, *overrides: str, out: str = "", command: tuple[str, ...] = PYTHON, **variables: str
) -> subprocess.Popen[str]:
    """A stage as DVC starts it: a process of its own, in the workspace, its outputs removed.

    Args:
        folder: the workspace.
        stage: its name.
        overrides: settings.
        out: folder of its outputs, in the workspace.
        command: what runs it.
        variables: of the environment.
    """
    shutil.rmtree(folder / (out or f"outputs/{stage}"), ignore_errors=True)
    settings = {"DVC_STAGE": stage, "DVC_ROOT": str(folder), "SLOTLOOP_TRACKING": "off", MARK: str(folder)}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings, **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, stage, *overrides], cwd=folder, env=env, **pipes)


def completed(folder: Path, stage: str, *overrides: str, out: str = "", **how: str) -> dict[str, bytes]:
    """What a stage writes if nothing stops it."""
    process = start(folder, stage, *overrides, out=out, **how)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    return content(folder / (out or f"outputs/{stage}"))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and errors of a stage that has ended by itself, with all that belonged to it."""
    _, error = process.communicate(timeout=PATIENCE)
    return process.returncode, error


def alone(folder: Path, stage: str, *overrides: str, out: str = "") -> dict[str, bytes]:
    """What a stage writes in this process, which saves the seconds in which another one starts."""
    out = out or f"outputs/{stage}"
    shutil.rmtree(folder / out, ignore_errors=True)
    run_stages(folder, (stage,), *overrides)
    return content(folder / out)


def running(folder: Path) -> list[psutil.Process]:
    """Everything alive that was started for a workspace."""
    return marked(MARK, str(folder))


def member(folder: Path, rank: int) -> psutil.Process:
    """The process of a job with a number."""
    [found] = [process for process in marked(MARK, str(folder)) if _rank(process) == str(rank)]
    return found


def _rank(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):  # it has ended meanwhile
        return process.environ().get("RANK")
    return None


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[Path]:
    """The workspace; what of it still runs at the end of the block is killed."""
    try:
        yield folder
    finally:
        for process in running(folder):
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def standing_still(processes: list[psutil.Process]) -> Iterator[None]:
    """Within the block the processes are stopped, so that what is seen of them stays true; afterwards they go on."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()
    try:
        wait_until(lambda: all(map(_stands, processes)), "the processes stand still", pause=0.0)
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.resume()


def _stands(process: psutil.Process) -> bool:
    """Whether a process is stopped, or has ended."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return True


def together(script: str, world: int, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run a script in several processes that can find one another; returns how each ended and what it printed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with _ranks(world) as ranks:
        command = [sys.executable, "-c", script]
        started = [subprocess.Popen(command, cwd=folder, env={**os.environ, **variables}, **pipes) for variables in ranks]
        told = [process.communicate(timeout=PATIENCE) for process in started]
    return [subprocess.CompletedProcess(p.args, p.returncode, *pair) for p, pair in zip(started, told, strict=True)]


@contextlib.contextmanager
def _ranks(world: int) -> Iterator[list[dict[str, str]]]:
    """Variables of each of several processes that can find one another; within the block nobody else is given their port."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as who listens there sets it too: both may have it
        ours.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ours.getsockname()[1]), "WORLD_SIZE": str(world)}
        yield [{**where, "PYTHONPATH": str(ROOT), "RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(world)]


def forked(script: str, world: int, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """As ``together``, without the seconds in which each process imports torch: they are forked from one that has, for tests of
    what processes do and not of how they end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pipeline.training.gradients", "tests.system.test_processes"])
    with _ranks(world) as ranks:
        started = [context.Process(target=_run, args=(script, str(folder), variables)) for variables in ranks]
        for process in started:
            process.start()
        for process in started:
            process.join(PATIENCE)
    told = [[(folder / f"{rank}.{stream}").read_text() for stream in STREAMS] for rank in range(world)]
    return [subprocess.CompletedProcess(script, p.exitcode, *pair) for p, pair in zip(started, told, strict=True)]


class InThisProcess:
    """What stands in for ``subprocess`` where stages are started one after the other: they run in this process."""

    def run(self, command: list[str], cwd: Path, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        """Run ``python -m stages ...`` in a folder, with the variables that differ from this process's."""
        from stages.__main__ import main

        told, error = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told), contextlib.redirect_stderr(error):
            for name in env:
                patch.setenv(name, env[name])
            patch.chdir(cwd)
            status = main(command[3:])
        return subprocess.CompletedProcess(command, status, told.getvalue(), error.getvalue())


def _run(script: str, folder: str, variables: dict[str, str]) -> None:
    """Run a script in this process, in a folder, into files of which each process has its own."""
    os.environ.update(variables)
    os.chdir(folder)
    for number, stream in enumerate(STREAMS, 1):
        os.dup2(os.open(f"{variables['RANK']}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    exec(script, {"__name__": "__main__"})
