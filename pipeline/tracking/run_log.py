"""What a stage run leaves to be reported: a folder under ``.tracking/``, written beside the run and sent by another process.

The run itself only ever writes files: it never opens a connection, and no server can slow it down, hang it or change its outputs.
``record.json`` holds what is known at the start, ``files/`` copies of settings, curves, metrics and pictures, ``end.json`` how the
run ended; weights stay where they are. A run that did not complete and is run again continues its record, as it continues its work
from ``.scratch``. Whatever goes wrong here is one line on stderr and never the run's problem. ``SLOTLOOP_TRACKING=off`` leaves
records out.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import sha256, write_atomic, write_json
from pipeline.machine.process import Interrupted
from pipeline.settings.effective import Settings, gin_text, yaml_text
from pipeline.tracking import reported
from pipeline.tracking.revision import revision, without_places

SWITCH = "SLOTLOOP_TRACKING"
GRACE = 30.0  # seconds after which a finished run no longer waits for a sender that says nothing


class TrackingError(UserError):
    """A record is damaged, or a tracker could not be reached or refused what was sent."""


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run when it starts.

    Attributes:
        stage: its name.
        order: its place in the pipeline.
        preset: what params.yaml names.
        identity: hash of settings, inputs and code: a run that did not complete continues its record.
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
        self.failing = folder / "failing"  # there while a tracker does not take what it is sent

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Read what was known when the run began."""
        return read(self.folder / "record.json", "delete its folder to forget the run")

    @property
    def end(self) -> dict[str, Any]:
        """``status`` of the run ("running", "killed", "completed", "failed" or "stopped") and its ``models``."""
        if (self.folder / "end.json").is_file():
            return read(self.folder / "end.json", "delete it to send what the run left")
        with lock(self.folder / "lock", shared=True) as free:
            return {"status": "killed" if free else "running", "models": []}

    def completed(self) -> bool:
        """Whether the run came to its end; if not, running it again continues this record."""
        with contextlib.suppress(TrackingError):
            return bool((self.folder / "end.json").is_file() and self.end.get("status") == "completed")
        return False

    def begin(self, facts: RunInfo) -> None:
        """Write what is known; what an earlier attempt at the same run left is kept."""
        earlier: dict[str, Any] = {}
        with contextlib.suppress(TrackingError):
            earlier = self.facts
        (self.folder / "end.json").unlink(missing_ok=True)
        self.failing.unlink(missing_ok=True)
        parent, config = _parent(facts), gin_text(facts.settings)
        settings = {f"{name}.{key}": value for name, values in facts.settings.items() for key, value in values.items()}
        shown = {key: value if isinstance(value, str) else repr(value) for key, value in settings.items()}
        write_atomic(self.files / "config.gin", without_places(config).encode())
        write_atomic(self.files / "config.yaml", without_places(yaml_text(facts.settings)).encode())
        known = {
            "id": earlier.get("id") or secrets.token_hex(8),
            "record": self.folder.name,
            "stage": facts.stage,
            "order": facts.order,
            "config": facts.digest,
            "written": hashlib.sha256(config.encode()).hexdigest(),
            "began": earlier.get("began") or time.time(),
            "settings": {key: without_places(value) for key, value in shown.items()},
            "out": str(facts.out.resolve()),
            "shown_out": facts.out.name if facts.out.is_absolute() else facts.out.as_posix(),
            "parent": parent.folder.name if parent else "",
            "depth": parent.facts["depth"] + 1 if parent else 0,
            "preset": facts.preset,
            "experiment": os.environ.get("DVC_EXP_NAME", ""),
            **revision(),
        }
        write_json(self.folder / "record.json", known)
        self.__dict__["facts"] = known

    def gather(self) -> None:
        """Copy what is reported from the run's output folder."""
        reported.copy(Path(self.facts["out"]), self.folder)

    def finish(self, status: str) -> None:
        """Keep what is reported and how the run ended; its weights by place and hash."""
        self.gather()
        out = Path(self.facts["out"])
        weights = [file for file in sorted(out.rglob("model.safetensors")) if (file.parent / "model.json").is_file()]
        models = [_reference(file, self.facts["shown_out"], out) for file in weights]
        write_json(self.folder / "end.json", {"status": status, "models": models})

    def salvage(self) -> None:
        """Gather what a killed run wrote, unless another run has written there since."""
        settings = Path(self.facts["out"]) / "config.gin"
        taken = [r for r in all_records()[0] if r.facts["out"] == self.facts["out"] and r.facts["began"] > self.facts["began"]]
        with lock(self.folder / "lock", shared=True) as free:  # whoever runs it again waits for us
            if free and not taken and not (settings.is_file() and sha256(settings) != self.facts["written"]):
                self.gather()


def read(file: Path, remedy: str) -> dict[str, Any]:
    """A file of a record.

    Raises:
        TrackingError: it is damaged; names it and the remedy.
    """
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise TrackingError(f"{file} is damaged ({error}); {remedy}") from None


def root() -> Path:
    """Where records are kept: in the main repository, also for experiments that run in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".tracking"


def all_records(folder: Path | None = None) -> tuple[list[Record], list[str]]:
    """Every record of a folder (None = ``root``), oldest first; and what is wrong with those that cannot be read."""
    readable, wrong = [], []
    for file in sorted((folder or root()).glob("*/record.json")):
        record = Record(file.parent)
        try:
            readable.append((record.facts["began"], record.facts["order"], record.folder.name, record))
        except (TrackingError, KeyError) as error:
            wrong.append(str(error) if isinstance(error, TrackingError) else f"{file} is damaged (no {error}); delete its folder")
    return [record for *_, record in sorted(readable)], wrong


@contextlib.contextmanager
def recorded(facts: RunInfo, track_config: str) -> Iterator[None]:
    """Keep a record of the run within the block, and start what sends it.

    Args:
        facts: what is known of the run.
        track_config: resolved text of ``track`` for the sending process; "" = it resolves params.yaml.
    """
    if os.environ.get(SWITCH) == "off":
        yield
        return
    sender, began = None, list[Record]()
    with contextlib.ExitStack() as locks:
        with _harmless("this run leaves no record"):
            began.append(_begun(facts, locks))
            sender = _start_sender(began[0], track_config)
        status = "failed"
        try:
            yield
            status = "completed"
        except (KeyboardInterrupt, Interrupted):
            status = "stopped"
            raise
        finally:
            for record in began:
                with _harmless(f"how this run ended is not in its record {record.folder.name}"):
                    record.finish(status)
    if sender is not None:
        _await(sender, began[0])


@contextlib.contextmanager
def lock(file: Path, *, patience: float = 0.0, shared: bool = False) -> Iterator[bool]:
    """Hold a file's lock within the block; gives False if someone else holds it for longer than ``patience`` seconds.

    Args:
        file: made if it is not there.
        patience: may be infinite.
        shared: only look whether it is free; looking does not disturb others who look.
    """
    until = time.monotonic() + patience
    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    yield False
                    return
                time.sleep(0.02)
            else:
                break
        yield True


@contextlib.contextmanager
def _harmless(consequence: str) -> Iterator[None]:
    """Tracking must not fail a run: whatever is raised within the block becomes one line."""
    try:
        yield
    except Exception as error:
        print(f"tracking: {type(error).__name__}: {error}; {consequence}", file=sys.stderr)


def _begun(facts: RunInfo, locks: contextlib.ExitStack) -> Record:
    """A new record, or that of the same run if it did not complete; locked while ``held`` is."""
    for number in itertools.count(1):
        record = Record(root() / f"{facts.stage}-{facts.identity[:12]}-{number}")
        if record.completed():
            continue
        record.folder.mkdir(parents=True, exist_ok=True)
        if _locked(record.folder / "lock", locks) and not record.completed():
            break
    record.begin(facts)
    return record


def _locked(file: Path, locks: contextlib.ExitStack) -> bool:
    """Take the lock of a run that is to begin, after those who look at what it left; False if the same run goes on elsewhere."""
    while not locks.enter_context(lock(file, patience=0.1)):
        with lock(file, shared=True) as nobody_runs:
            if not nobody_runs:
                return False
    return True


def _parent(facts: RunInfo) -> Record | None:
    """The run that wrote this one's inputs, found by the settings beside them; of several the furthest down the pipeline."""
    written = {sha256(folder / "config.gin") for folder in facts.inputs if (folder / "config.gin").is_file()}
    writers = [r for r in all_records()[0] if r.facts["written"] in written and r.facts["order"] < facts.order]
    return max(writers, key=lambda r: (r.facts["depth"], -r.facts["order"], r.facts["began"]), default=None)


def _reference(file: Path, shown_out: str, out: Path) -> dict[str, Any]:
    """A model by where it lies and what it is; its bytes stay there."""
    description = json.loads((file.parent / "model.json").read_bytes())
    digest = description["sha256"]["model.safetensors"]
    return {"path": f"{shown_out}/{file.relative_to(out).as_posix()}", "sha256": digest, "bytes": file.stat().st_size}


def _start_sender(record: Record, track_config: str) -> subprocess.Popen[bytes]:
    """A process of its own session: it outlives the run if it must, and holds none of its pipes."""
    command = [sys.executable, "-m", "stages", "track", "--follow", str(record.folder.resolve())]
    command += ["--config", track_config] if track_config and Path(track_config).is_file() else []
    of_the_job = ("DVC_STAGE", "RANK", "WORLD_SIZE", "SLOTLOOP_ERRORS", "TORCHELASTIC_ERROR_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in of_the_job}
    code = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH", ""))))
    with (record.folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)


def _await(sender: subprocess.Popen[bytes], record: Record) -> None:
    """Wait for the sender unless a tracker fails; an interrupt ends the waiting, the run itself is done."""
    until = time.monotonic() + GRACE
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < until and not record.failing.is_file():
            with contextlib.suppress(subprocess.TimeoutExpired):
                if sender.wait(timeout=0.05) == 0:
                    return
                break
    print(f"tracking: not everything is sent; nothing is lost: python -m stages track --ship (log: {record.folder}/log)")
