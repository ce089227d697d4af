"""Sending a stage to a ClearML queue, and what an agent there runs: ``python -m pipeline.tracking.queueing STAGE``.

An agent clones the commit, installs the lock file and starts the task's entry point with its interpreter by path, without
setting PATH (clearml-agent 3.0.3, commands/worker.py). The stages of ``dvc.yaml`` call ``python``, so the interpreter's folder
comes first here. ``dvc repro`` makes what the stage needs, too; with a default DVC remote everything is fetched from there and
pushed to it, else it stays at the agent.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.tracking.clearml import ClearML
from pipeline.tracking.revision import to_clone

LOCK = Path("requirements.lock")


def send(stage: str, queue: str, trackers: Sequence[Any]) -> str:
    """Enqueue a stage as it is at the current commit, and say in a line where it went.

    Args:
        stage: its name.
        queue: name of a ClearML queue.
        trackers: those that are set up; the ClearML among them knows server and project.

    Raises:
        UserError: no ClearML among the trackers, or no server; files differ from the commit, or it cannot be cloned; no such queue.
    """
    server = next((tracker for tracker in trackers if isinstance(tracker, ClearML)), None)
    if server is None:
        raise UserError("--queue needs ClearML, which is not among track.run.trackers: add @clearml.ClearML()")
    source = to_clone()
    requirements = LOCK.read_text() if LOCK.is_file() else ""
    task = server.enqueue(stage, queue, source, f"-m pipeline.tracking.queueing {stage}", requirements)
    return f"{stage}: queued in {queue} as task {task}, commit {source['revision'][:12]} of {source['repository']}"


def run(stage: str) -> int:
    """Do a stage's work, and what it needs, as an agent; returns the exit status."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

    def dvc(*arguments: str, **pipes: Any) -> Any:
        return subprocess.run([sys.executable, "-m", "dvc", *arguments], env={**os.environ, "PATH": path}, check=False, **pipes)

    remote = dvc("config", "core.remote", stdout=subprocess.PIPE).stdout.strip()
    if remote:
        dvc("fetch", "--run-cache", stage)  # what is not there is computed
    status = int(dvc("repro", stage).returncode)
    return status or (int(dvc("push", "--run-cache").returncode) if remote else 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
