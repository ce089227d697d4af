"""DVC in temporary clones, for the slow tests: one finished smoke run per session to copy; processes to start, watch and stop."""

import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.support.once import made_once

TEN = ["configure", "prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report"]
LONG = 120  # steps of a warmup that is killed on its way
LONG_WARMUP = f"{{loop: {{fit: {{steps: {LONG}, save_every: 1}}}}}}"
PATIENCE = 600.0  # seconds until a test that waits gives up


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables for DVC in a folder: nothing of the user's, and a mark by which its processes are found."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_", "SLOTLOOP_SCRATCH"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    who = {f"GIT_{role}_{field}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    return {**mine, **who, "PATH": path, "SLOTLOOP_TRACKING": "off", "DVC_SITE_CACHE_DIR": str(_site(folder)), **more}


def _site(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-site")


def dvc(folder: Path, *arguments: str, expect: int = 0, **more: str) -> str:
    """Run dvc in a folder; returns what it printed. Into files: a worker that it leaves behind would hold a pipe open."""
    command, env = [sys.executable, "-m", "dvc", *arguments], environment(folder, **more)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        code = subprocess.run(command, cwd=folder, env=env, stdout=out, stderr=error, timeout=PATIENCE, check=False).returncode
        out.seek(0), error.seek(0)
        output = out.read() + error.read()
    assert code == expect, output
    return output


def dvc_json(folder: Path, *arguments: str) -> Any:
    """What a dvc command prints with ``--json``."""
    return json.JSONDecoder().raw_decode(dvc(folder, *arguments, "--json"))[0]


def start_dvc(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """dvc in a process group of its own, so that a signal to the group reaches its stage too."""
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment(folder, **more),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; returns what it printed."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True).stdout


def ran(output: str) -> list[str]:
    """Stages that DVC ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def steps_of(output: str, stage: str) -> list[int]:
    """Steps that a training stage reported."""
    return [int(step) for step in re.findall(rf"^{stage}: step (\d+)/", output, re.MULTILINE)]


def clone_to(folder: Path, preset: str) -> Path:
    """A clone with the working tree's files, set to a preset."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for file in filter(None, git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    set_preset(folder, preset)
    return folder


def set_preset(folder: Path, preset: str) -> None:
    params = folder / "params.yaml"
    lines = [f"preset: {preset}" if line.startswith("preset:") else line for line in params.read_text().splitlines()]
    params.write_text("\n".join(lines) + "\n")


def bind(params: Path, stage: str, bindings: str) -> None:
    """Give a stage's section its bindings."""
    empty = f"{stage}:\n  gin: []\n  bindings: "
    assert empty + "{}" in params.read_text()
    params.write_text(params.read_text().replace(empty + "{}", empty + bindings))


def _first_run(folder: Path) -> None:
    clone_to(folder, "smoke")
    (folder / "dvc.lock").unlink(missing_ok=True)
    assert ran(dvc(folder, "repro")) == TEN


def finished_clone(base: Path, folder: Path) -> Path:
    """A clone of one's own after one ``dvc repro``, not committed.

    Args:
        base: ``shared_folder`` of the session; what is copied is made there once.
        folder: where to put the copy.
    """
    return Path(shutil.copytree(made_once(base / "finished-clone" / "slotloop", _first_run), folder, symlinks=True))


def committed_clone(base: Path, folder: Path) -> Path:
    """``finished_clone`` with its results committed, as one does before sharing them or queueing experiments."""
    finished_clone(base, folder)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


def long_warmup(base: Path) -> Path:
    """A clone after an uninterrupted ``dvc repro warmup`` with ``LONG_WARMUP``. Read only."""

    def run(folder: Path) -> None:
        finished_clone(base, folder)
        bind(folder / "params.yaml", "warmup", LONG_WARMUP)
        output = dvc(folder, "repro", "warmup")
        assert ran(output) == ["configure", "warmup"] and steps_of(output, "warmup") == list(range(1, LONG + 1))

    return made_once(base / "long-warmup" / "slotloop", run)


def locked(folder: Path, stage: str) -> dict[str, str]:
    """Hash of each output of a stage in dvc.lock."""
    outs = YAML(typ="safe").load((folder / "dvc.lock").read_text())["stages"][stage]["outs"]
    return {out["path"]: out["md5"] for out in outs}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def kept_by_dvc(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the phases' validation.csv, which is there to be watched: metrics.json has its rows."""
    return {name: data for name, data in content(folder).items() if not name.endswith("validation.csv")}


def snapshot(folder: Path, stage: str) -> int:
    """Step of the newest snapshot that a stage of one training run keeps in ``.scratch``; 0 if there is none."""
    found = glob.glob(str(folder / ".scratch" / stage / "*" / stage / "step-*"))  # unlike Path's, at ease with what vanishes
    return max((int(path.rpartition("-")[2]) for path in found), default=0)


def processes(folder: Path) -> list[psutil.Process]:
    """Everything alive that was started, by whomever, for DVC in a folder."""
    return marked("DVC_SITE_CACHE_DIR", str(_site(folder)))


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Everything alive whose environment holds a mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def worked_off(folder: Path) -> None:
    """Wait until the queue's worker has ended, which it does when its queue is empty, and see that nothing is left in it.

    To ask for its status meanwhile says too little, for what was taken from the queue and has not begun is not listed, and writes
    messages into the worker's folder, of which one that is read half written ends it (DVC 3, kombu 5.7).
    """
    wait_until(lambda: not processes(folder), "the queue's worker ends", pause=1)
    assert not {"Queued", "Running"} & {*dvc(folder, "queue", "status").split()}


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[Path]:
    """The folder; what of it still runs at the end of the block is killed, and is a failure."""
    try:
        yield folder
    finally:
        left = []
        for process in processes(folder):
            with contextlib.suppress(psutil.Error):
                left.append(" ".join(process.cmdline()))
                process.kill()
    assert not left


def wait_until(condition: Callable[[], object], what: str, pause: float = 0.05) -> None:
    """Poll until the condition holds; fail after ``PATIENCE`` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain: {what}"
        time.sleep(pause)
