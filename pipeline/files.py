"""Files that appear whole or not at all, and the hashes that manifests hold. Same content, same bytes: no clocks, no hosts."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import DataError


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target and rename: a reader never sees half a file, and a link into a cache is never written through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def put_durably(temporary: Path, path: Path) -> None:
    """Rename a finished file to its name so that a power cut leaves it whole or absent: content, name and folder reach the disk."""
    synced(temporary)
    os.replace(temporary, path)
    synced(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """``write_atomic`` that also survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    put_durably(temporary, path)


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
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; it is written by stage {stage}: run dvc repro {stage}") from None
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
        raise DataError(f"{path} is listed in the manifest but does not exist; run dvc repro {stage}")
    if (digest := sha256(path)) != expected:
        raise DataError(f"{path} is damaged: sha256 {digest[:12]}, its manifest says {expected[:12]}; run dvc repro {stage}")
