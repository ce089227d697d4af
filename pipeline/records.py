"""What a stage run leaves to be reported: a folder under ``.tracking/``, written beside the run and sent by another process.

The run itself only ever writes files: it never opens a connection, and no server can slow it down, hang it or change its outputs.
A record holds facts (settings, revision, parent), and at the end copies of curves, metrics and pictures; weights stay where they
are. ``SLOTLOOP_TRACKING=off`` leaves records out.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.effective import Settings, gin_text, yaml_text
from pipeline.files import sha256, write_atomic, write_json

SWITCH = "SLOTLOOP_TRACKING"
GRACE = 5.0  # seconds that a finished run waits for what sends its record
REPORTED = ("curves.csv", "metrics.json", "*.md", "*.png")


@dataclass(frozen=True)
class Facts:
    """What is known of a run when it starts.

    Attributes:
        stage: its name.
        order: its place in the pipeline.
        preset: what params.yaml names.
        identity: hash of settings, inputs and code: a run that was killed continues its record.
        digest: hash of the settings.
        settings: every value in effect.
        out: folder that it writes.
        inputs: folders that its settings name.
    """

    stage: str
    order: int
    preset: str
    identity: str
    digest: str
    settings: Settings
    out: Path
    inputs: Sequence[Path]


class Record:
    """One run's folder under ``.tracking/``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, folder / "files"

    @property
    def facts(self) -> dict[str, Any]:
        """What ``recorded`` wrote."""
        return dict(json.loads((self.folder / "record.json").read_bytes()))

    def update(self, **facts: Any) -> None:
        """Add facts."""
        write_json(self.folder / "record.json", {**self.facts, **facts})

    def alive(self) -> bool:
        """Whether the run's process still holds its record."""
        with lock(self.folder / "lock") as held:
            return not held

    def gather(self) -> None:
        """Copy what is reported from the run's output folder, and note its weights by hash."""
        out = Path(self.facts["out"])
        for file in (file for pattern in REPORTED for file in sorted(out.rglob(pattern))):
            target = self.files / file.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        weights = [file for file in sorted(out.rglob("model.safetensors")) if (file.parent / "model.json").is_file()]
        self.update(models=[_reference(file, self.facts["shown_out"], out) for file in weights])


def root() -> Path:
    """Where records are kept: in the main repository, also for experiments that run in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".tracking"


def all_records() -> list[Record]:
    """Every record, oldest first."""
    found = [Record(file.parent) for file in root().glob("*/record.json")]
    return sorted(found, key=lambda record: (record.facts["began"], record.folder.name))


@contextlib.contextmanager
def recorded(facts: Facts, track_config: str) -> Iterator[None]:
    """Keep a record of the run within the block, and start what sends it.

    Args:
        facts: what is known of the run.
        track_config: resolved text of ``track`` for the sending process; "" = it resolves params.yaml.
    """
    if os.environ.get(SWITCH) == "off":
        yield
        return
    record = _begin(facts)
    with lock(record.folder / "lock", wait=True):
        sender = _start_sender(record, track_config)
        status = "failed"
        try:
            yield
            status = "completed"
        except KeyboardInterrupt:
            status = "stopped"
            raise
        finally:
            record.gather()
            record.update(status=status)
    with contextlib.suppress(subprocess.TimeoutExpired):
        if sender.wait(timeout=GRACE) == 0:
            return
    print(f"tracking: not everything could be sent; nothing is lost: python -m stages track --ship ({record.folder}/log)")


@contextlib.contextmanager
def lock(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a file's lock within the block; gives False if someone else does (with ``wait``, waits for them)."""
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _begin(facts: Facts) -> Record:
    """A new record, or that of the same run if it was killed."""
    number = 1
    while True:
        record = Record(root() / f"{facts.stage}-{facts.identity[:12]}-{number}")
        if not (record.folder / "record.json").is_file():
            break
        if "status" not in record.facts and not record.alive():
            return record
        number += 1
    parent = _parent(facts)
    record.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(record.files / "config.gin", gin_text(facts.settings).encode())
    write_atomic(record.files / "config.yaml", yaml_text(facts.settings).encode())
    values = {f"{name}.{key}": _shown(value) for name, held in facts.settings.items() for key, value in held.items()}
    known = {
        "stage": facts.stage,
        "order": facts.order,
        "config": facts.digest,
        "written": sha256(record.files / "config.gin"),
        "began": time.time(),
        "settings": values,
        "out": str(facts.out.resolve()),
        "shown_out": str(facts.out) if not facts.out.is_absolute() else facts.out.name,
        "parent": parent.folder.name if parent else "",
        "depth": parent.facts["depth"] + 1 if parent else 0,
        "preset": facts.preset,
        "experiment": os.environ.get("DVC_EXP_NAME", ""),
        **_revision(),
    }
    write_json(record.folder / "record.json", known)
    return record


def _parent(facts: Facts) -> Record | None:
    """The run that wrote this one's inputs, found by the settings beside them; of several the furthest down the pipeline."""
    written = {sha256(folder / "config.gin") for folder in facts.inputs if (folder / "config.gin").is_file()}
    found = [r for r in all_records() if r.facts["written"] in written and r.facts["order"] < facts.order]
    return max(found, key=lambda r: (r.facts["depth"], -r.facts["order"], r.facts["began"]), default=None)


def _revision() -> dict[str, Any]:
    """Commit, branch and address of the code, without credentials; whether files differ from it, but never how."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    if shutil.which("git") is None:
        return {"revision": "", "branch": "", "repository": "", "changed": False}
    address = urlsplit(git("remote", "get-url", "origin"))
    shown = urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2])) if address.scheme.startswith("http") else ""
    return {
        "revision": git("rev-parse", "HEAD"),
        "branch": git("branch", "--show-current"),
        "repository": shown,
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def _reference(file: Path, shown_out: str, out: Path) -> dict[str, Any]:
    """A model by where it lies and what it is; its bytes stay there."""
    description = json.loads((file.parent / "model.json").read_bytes())
    digest = description.get("sha256") or description["fingerprint"]
    return {"path": f"{shown_out}/{file.relative_to(out)}", "sha256": digest, "bytes": file.stat().st_size}


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) else repr(value)


def _start_sender(record: Record, track_config: str) -> subprocess.Popen[bytes]:
    """A process of its own session: it outlives the run if it must, and holds none of its pipes."""
    command = [sys.executable, "-m", "stages", "track", "--follow", str(record.folder.resolve())]
    command += ["--config", track_config] if track_config and Path(track_config).is_file() else []
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    code = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH", ""))))
    with (record.folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)
