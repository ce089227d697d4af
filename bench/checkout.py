"""Checkouts of this project beside each other: this one, and another whose path a bench is given."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(checkout: Path, what: str, *arguments: str, cwd: Path | None = None, **variables: str) -> str:
    """Run Python on the code of a checkout, by its own interpreter if it has one; returns what it prints.

    Args:
        checkout: its folder.
        what: that runs, for an error's words.
        arguments: of Python.
        cwd: where to run; None = in the checkout.
        variables: of the environment.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    own = checkout / ".venv/bin/python"
    command = [str(own if own.exists() else sys.executable), *arguments]
    env = {**os.environ, "PYTHONPATH": str(checkout), **variables}
    done = subprocess.run(command, cwd=cwd or checkout, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} in {checkout}: {done.stderr[-2000:]}")
    return done.stdout
