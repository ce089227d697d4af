"""Files that appear whole or not at all, and the hashes that manifests hold. Same content, same bytes: no clocks, no hosts.

What a disk refuses is one line that names the file, what stands in its way and what to do; nothing half written is left.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSALS = {  # what people and disks cause, by number; anything else is a bug
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "its disk's quota is used up",
    errno.EFBIG: "it would be larger than the disk or the limit of this process (ulimit -f) allows",
    errno.EROFS: "its disk is read-only",
    errno.EACCES: "there is no permission",
    errno.EPERM: "there is no permission",
    errno.EISDIR: "it is a folder, and a file is expected",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EEXIST: "a file stands where a folder is expected",
    errno.ELOOP: "its link leads back to itself",
    errno.ENAMETOOLONG: "its name is too long for the disk",
    errno.ENOENT: "it does not exist",
    errno.EIO: "its disk fails",
    errno.ESTALE: "its disk is gone",
    errno.EMFILE: "too many files are open (ulimit -n)",
}


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target and rename: a reader never sees half a file, and a link into a cache is never written through.

    Raises:
        StorageError: the disk refuses; the old file stands.
    """
    temporary = path.with_name(path.name + ".tmp")
    with storing(path, temporary, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)


def put_durably(temporary: Path, path: Path) -> None:
    """Rename a finished file to its name so that a power cut leaves it whole or absent: content, name and folder reach the disk."""
    synced(temporary)
    os.replace(temporary, path)
    synced(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """``write_atomic`` that also survives a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with storing(path, temporary, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        put_durably(temporary, path)


@contextlib.contextmanager
def storing(path: Path, temporary: Path | None = None, size: int | None = None) -> Iterator[None]:
    """Raise what a disk refuses within the block as a StorageError, and leave nothing half written.

    Args:
        path: what is to be written.
        temporary: file or folder that is written first; it is removed, whatever ends the block.
        size: bytes to be written, where they are known.
    """
    try:
        try:
            yield
        finally:
            if temporary is not None:
                remove(temporary)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise StorageError(refusal(error, path, "written", size)) from None


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as it is there and the disk lets it go."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def refusal(error: OSError, path: Path | None = None, done: str = "read or written", size: int | None = None) -> str:
    """Say in one line what a disk refused.

    Args:
        error: one of ``REFUSALS``.
        path: what was to be read or written; None = what the error names, or else the standard output.
        done: what was to be done.
        size: bytes to be written, where they are known.
    """
    named = path if path is not None else Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    if named is None:
        return f"the standard output cannot be written: {REFUSALS[error.errno or 0]}"
    reason = REFUSALS[error.errno or 0]
    folder = next((parent for parent in named.absolute().parents if os.path.lexists(parent)), Path("/"))
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and not folder.is_dir():
        reason = f"{folder} is a file, and a folder is expected"
    if error.errno not in FULL:
        return f"{named} cannot be {done}: {reason}; put it right, or name another place"
    with contextlib.suppress(OSError):
        needed = "" if size is None else f" of {size:,} that are needed"
        reason = f"the disk of {folder} is full ({shutil.disk_usage(folder).free:,} bytes are free{needed})"
    return f"{named} cannot be {done}: {reason}; make room and run the same again"


def absence(path: Path, kind: str = "file") -> str:
    """Say why there is no such file or folder: it does not exist, or something else stands in its place."""
    if path.is_dir() and kind == "file":
        return "is a folder, and a file is expected"
    if path.is_file():
        return "is a file, and a folder is expected"
    if path.is_symlink():
        return f"is a link that leads nowhere (to {os.readlink(path)})"
    way = next((parent for parent in path.parents if os.path.lexists(parent)), path)
    if not way.is_dir() and way != path:
        return f"does not exist: {way} is {'a file, and a folder is expected' if way.is_file() else 'a link that leads nowhere'}"
    return "does not exist"


def synced(path: Path) -> None:
    """Wait until a file's or folder's content has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(value: Any) -> bytes:
    """``value`` as indented JSON with sorted keys: the same value, the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to a file as JSON."""
    write_atomic(path, json_bytes(value))


def read_json(path: Path, stage: str) -> Any:
    """Read JSON that ``stage`` wrote.

    Raises:
        DataError: the file is missing or is not JSON; names the stage to run.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        if path.is_file():
            raise StorageError(refusal(error, path, "read")) from None
        raise DataError(f"{path} {absence(path)}; it is written by stage {stage}: run dvc repro {stage}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); run dvc repro {stage} again") from None


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str, stage: str) -> None:
    """Check a file against the hash in its manifest.

    Raises:
        DataError: the file is missing or has other content.
    """
    if not path.is_file():
        raise DataError(f"{path} is listed in the manifest but {absence(path)}; {mend(stage)}")
    if (digest := sha256(path)) != expected:
        raise DataError(f"{path} is damaged: sha256 {digest[:12]}, its manifest says {expected[:12]}; {mend(stage)}")


def mend(stage: str) -> str:
    """Say what to do about a folder that is not what its stage wrote."""
    return f"run dvc repro {stage}, or dvc checkout if it was right before"
