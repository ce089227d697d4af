"""Manifests: what a stage hands on and what that was made from, sealed so that nothing of it changes unseen.

A manifest is a JSON object whose ``digest`` is the hash of all else in it. ``sha256`` holds the hashes of files beside it,
``inputs`` the digest of each manifest that they were made from, by the stage that wrote it: so a folder's digest stands for every
byte of it and of what came before. Hashes find what changed by accident or by hand; who writes them all anew is believed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import json_bytes, mend, read_json, verify, write_json

DIGEST, HASHES, INPUTS, STAGE = "digest", "sha256", "inputs", "stage"


def digest_of(content: Mapping[str, Any]) -> str:
    """Hash a manifest's content without its own digest (sha256, in hex)."""
    return hashlib.sha256(json_bytes({name: value for name, value in content.items() if name != DIGEST})).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's content with its digest."""
    return {**content, DIGEST: digest_of(content)}


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest with its digest; the same content, the same bytes."""
    write_json(path, sealed(content))


class Manifest:
    """A manifest that was read, and is what was written.

    Args:
        path: of the file.
        stage: that writes it, named in errors.
        writer: stage or phase that must have written it, if it names one; None = any.

    Attributes:
        folder: that it lies in.
        content: all that it holds.
        digest: hash of its content.
        writer: stage or phase that wrote it; "" if it names none.
        hashes: sha256 of the files beside it, by name.
        inputs: digest of each manifest that they were made from, by the stage that wrote it.
        verified: names of the files that were hashed already: none is hashed twice.

    Raises:
        DataError: it is missing, is not what was written, or another stage wrote it.
    """

    def __init__(self, path: Path, stage: str, writer: str | None = None) -> None:
        self.path, self.folder, self.stage = path, path.parent, stage
        content = read_json(path, stage)
        if not isinstance(content, dict) or not isinstance(content.get(DIGEST), str):
            raise DataError(f"{path} has no digest: another version wrote it, or it is no manifest; {mend(stage)}")
        if digest_of(content) != content[DIGEST] or json_bytes(content) != path.read_bytes():
            raise DataError(f"{path} is not what was written: its digest is of other content; {mend(stage)}")
        self.content: dict[str, Any] = content
        self.digest: str = content[DIGEST]
        self.writer: str = content.get(STAGE, "")
        self.hashes: dict[str, str] = content.get(HASHES, {})
        self.inputs: dict[str, str] = content.get(INPUTS, {})
        self.verified: set[str] = set()
        if writer is not None and self.writer not in ("", writer):
            raise DataError(f"{self.folder} is what {self.writer} wrote, expected what {writer} writes; {mend(stage)}")

    def verify(self, name: str) -> Path:
        """Check a file beside it against its hash, and return its path.

        Raises:
            DataError: the file is missing, is not what was written, or is not listed.
        """
        if name not in self.hashes:
            raise DataError(f"{self.path} lists no {name}; {mend(self.stage)}")
        if name not in self.verified:
            verify(self.folder / name, self.hashes[name], self.stage)
            self.verified.add(name)
        return self.folder / name

    def json(self, name: str) -> Any:
        """Read a JSON file beside it, verified."""
        return read_json(self.verify(name), self.stage)


def check_inputs(folder: Path, inputs: Mapping[str, str], others: Mapping[str, str], place: Path, stage: str) -> None:
    """Check that a folder was made from what is there now.

    Args:
        folder: that was made.
        inputs: digests of what it was made from, by stage.
        others: digests of what is there; only of stages that both name.
        place: that they stand in, for the error.
        stage: that wrote the folder.

    Raises:
        DataError: a digest is another one; names both.
    """
    for name, digest in others.items():
        if inputs.get(name, digest) != digest:
            what = f"{folder} belongs to {name} {inputs[name][:12]}, but {place} holds {digest[:12]}"
            raise DataError(f"{what}; {mend(stage)}")
