"""Hashes of files that lie outside the repository: a checkpoint of 16 GB is read when it changed and not before every run.

The hash of a large file is remembered below ``.scratch`` with the file's size, inode and time of change, outside of what DVC sees.
"""

import json
import time
from pathlib import Path

from pipeline.files import json_bytes, sha256, write_atomic
from pipeline.machine import snapshots

LARGE = 1 << 24  # bytes; what is smaller is read anew
SETTLED = 2.0  # seconds: a younger file may change again within the resolution of its clock
MISSING = "missing"


def content_hash(path: Path) -> str:
    """Hash a file's content (sha256, in hex); "missing" if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return MISSING
    if status.st_size < LARGE:
        return sha256(path)
    file, stamp = snapshots.root() / "file-hashes.json", [status.st_size, status.st_ino, status.st_mtime_ns]
    known = _known(file)
    name = str(path.resolve())
    if known.get(name, [])[:-1] != stamp:
        known = {other: entry for other, entry in known.items() if Path(other).is_file()}
        known[name] = [*stamp, sha256(path)]
        if time.time() - status.st_mtime > SETTLED:
            _remember(file, known)
    return str(known[name][-1])


def _known(file: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: entry for name, entry in known.items() if isinstance(entry, list)} if isinstance(known, dict) else {}


def _remember(file: Path, known: dict[str, list[int | str]]) -> None:
    try:
        write_atomic(file, json_bytes(known))
    except OSError:  # a full or read-only disk, or another process at the same file: the next run hashes again
        return
