"""State of unfinished work, outside DVC's outputs: a killed stage continues from here and ends with the same bytes.

Kept in ``.scratch/<stage>/<key>`` of the main repository; the key is a hash of resolved settings, inputs and code, so that other
work never continues this one. A snapshot is a folder written beside its name and renamed, with the hash of every file: a kill at
any moment leaves a whole snapshot or none. Removed when the stage is done; what was abandoned is collected by age.
"""

import ast
import contextlib
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import sys
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import Tensor

from components.training.finiteness import first_non_finite
from pipeline.errors import DataError, TrainingError, UserError
from pipeline.files import sha256, verify
from pipeline.machine.distributed import barrier, rank
from pipeline.machine.process import Interrupted
from pipeline.machine.snapshot_writing import DESCRIPTION, OUT, PART, STATE, Writing, snapshots_in
from pipeline.tensor_files import read_tensor, tensor_names

STALE_AFTER = 14 * 24 * 3600.0  # seconds
_folder: ContextVar[Path | None] = ContextVar("scratch", default=None)


def key(text: str, dependencies: str, place: Path = Path()) -> str:
    """Identify a stage's work: its settings, the code and files they reach, and the manifests of the folders they name.

    Args:
        text: resolved configuration.
        dependencies: list of paths and hashes, as configure writes it for DVC.
        place: folder that names in the configuration are relative to.
    """
    digest = hashlib.sha256(f"{text}{dependencies}".encode())
    for file in (file for folder in folders_named_in(text, place) for file in sorted((place / folder).glob("*.json"))):
        digest.update(f"{file.name} {sha256(file)}".encode())
    return digest.hexdigest()


def root() -> Path:
    """Name the folder that holds all unfinished work."""
    return Path(os.environ.get("SLOTLOOP_SCRATCH") or Path(os.environ.get("DVC_ROOT", ".")) / ".scratch")


def folders_named_in(text: str, place: Path = Path()) -> list[Path]:
    """The folders below ``place`` that a configuration names and that exist: a stage's inputs, and what it wrote before."""
    return [Path(name) for name in words_in(text) if _is_folder(place / name)]


def words_in(text: str) -> list[str]:
    """Every string of a gin text that is not empty, sorted: what may name a file or folder, with whatever signs in it."""
    literals = (token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.STRING)
    return sorted({word for word in map(ast.literal_eval, literals) if word and isinstance(word, str)})


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no path at all: too long, or with a sign that none may have
        return False


@contextlib.contextmanager
def workspace(stage: str, identity: str) -> Iterator[None]:
    """Give the stage a folder for its state while the block runs (see ``of``); when it ends well the folder is removed.

    Raises:
        UserError: another process is doing the same work.
    """
    folder = root() / stage / identity[:16]
    if rank():  # the first process holds the lock and removes the folder, after all others are done
        token = _folder.set(folder)
        try:
            barrier()
            yield
            barrier()
        finally:
            _folder.reset(token)
        return
    folder.mkdir(parents=True, exist_ok=True)
    _collect(keep=folder)
    with (folder / "lock").open("w") as lock:
        _lock(lock, f"stage {stage} is already running with these settings (lock {folder}/lock); wait for it")
        token, done = _folder.set(folder), False
        try:
            barrier()
            yield
            barrier()
            done = True
        finally:
            _folder.reset(token)
            if done or [file.name for file in folder.iterdir()] == ["lock"]:
                _remove(folder)


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """While the block runs, no other run writes to ``out``, whatever its settings.

    Raises:
        UserError: another process writes there.
    """
    if rank():
        yield
        return
    folder = root() / "out" / hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        _lock(lock, f"another run writes to {out} (lock {folder}/lock); wait for it, or write elsewhere: --out DIR")
        try:
            yield
        finally:
            _remove(folder)


def _lock(file: IO[str], taken: str) -> None:
    """Take a lock that ends with this process; where the file system has none, go on without.

    Raises:
        UserError: another process has it; says what is ``taken``.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(taken) from None
    except OSError as error:
        print(f"no lock on {file.name} ({error.strerror}); start nothing twice with the same settings", file=sys.stderr)


def _remove(folder: Path) -> None:
    """Remove a folder of finished work, and those above it that are empty then."""
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # not empty: other work is kept there
        folder.parent.rmdir()
        root().rmdir()


class Scratch:
    """Snapshots of one training run: tensors, numbers, and copies of what it has written so far."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._writing: Writing | None = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """When the block ends, however it does, the last of its snapshots has been written.

        Raises:
            StorageError: the disk refused it. That came first, whatever else ends the block.
        """
        try:
            yield
        except BaseException as error:
            self.finish(together=isinstance(error, Interrupted | TrainingError))  # these come to all processes in the same step
            raise
        self.finish()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        out: Path,
        parts: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Write one snapshot and drop the older ones, at once or while the training goes on (``snapshot_writing``). One that is
        still being written is waited for.

        Args:
            step: that it is of.
            tensors: that this process holds whole.
            numbers: beside them.
            out: folder whose files are copied.
            parts: rows of tensors of which every process holds some, in their order; then all processes must call it.

        Raises:
            StorageError: the disk refuses it, or refused the last one.
        """
        if self.folder is None:
            return
        self.finish()
        self._writing = Writing(self.folder / f"step-{step:09d}", tensors, numbers, out, parts)
        if not self._writing.behind:
            self.finish()

    def finish(self, *, together: bool = True) -> None:
        """Wait until the last snapshot has been written; see ``Writing.finish``."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.finish(together=together)

    def has(self, step: int) -> bool:
        """Tell whether there is a snapshot of a step; one that is being written is waited for."""
        self.finish(together=False)
        return self.folder is not None and (self.folder / f"step-{step:09d}").is_dir()

    def load(
        self, out: Path | None, cut: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole snapshot whose numbers are finite; None if there is none.

        Args:
            out: its files are put back there, and damaged snapshots are removed; None = only look.
            cut: takes of each whole tensor, by name, what is to be kept of it.
        """
        for snapshot in snapshots_in(self.folder) if self.folder is not None else ():
            try:
                description = json.loads((snapshot / DESCRIPTION).read_bytes())
                for name, expected in description["files"].items():
                    verify(snapshot / name, expected, "")
                tensors = {name: cut(name, tensor) for name, tensor in _finite_tensors(snapshot)}
            except (DataError, OSError, ValueError, KeyError):
                if out is not None:
                    shutil.rmtree(snapshot)
                continue
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                for file in snapshot.glob(f"{OUT}*"):
                    shutil.copyfile(file, out / file.name.removeprefix(OUT))
            return tensors, description["numbers"]
        return None


def _finite_tensors(snapshot: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a snapshot, of several processes' rows put together; one that is not finite is a DataError."""
    parts = sorted(snapshot.glob(f"{PART}*"))
    for files in ([snapshot / STATE], parts):
        for name in tensor_names(files[0]) if files else ():
            rows = [read_tensor(file, name) for file in files]
            whole = rows[0] if len(rows) == 1 else torch.cat(rows)
            if first_non_finite({name: whole}):
                raise DataError(f"{snapshot} holds numbers in '{name}' that are not finite")
            yield name, whole


def of(name: str) -> Scratch:
    """Where a training run of the current stage keeps its state; nowhere outside ``workspace``."""
    return Scratch(folder(name))


def folder(name: str) -> Path | None:
    """A folder of the current stage's work; None outside ``workspace``."""
    current = _folder.get()
    return None if current is None else current / name


def _collect(keep: Path) -> None:
    """Remove what nobody has touched for ``STALE_AFTER`` seconds."""
    for folder in map(Path, glob.glob(f"{glob.escape(str(root()))}/*/*")):
        if folder != keep and time.time() - _touched(folder) > STALE_AFTER:
            shutil.rmtree(folder, ignore_errors=True)


def _touched(folder: Path) -> float:
    """Find when anything in a folder was last written; another stage may be at work in it, and remove files meanwhile."""
    times = []
    for place, _, files in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in files)):
            with contextlib.suppress(FileNotFoundError):
                times.append(os.stat(path).st_mtime)
    return max(times, default=float("inf"))  # it is gone
