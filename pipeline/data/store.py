"""Shards in a place that is no folder of this machine: an object store, or a disk that several machines share. The door to fsspec.

A shard's file is named by its content and never changes; a commit record, written after it, says which file a shard of the plan is.
So workers need not know of each other: they may join, leave, do the same shard twice, or be killed, and what stands in the store is
whole. Files of a worker that was killed between the two stay behind, and nothing reads them.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, DataError
from pipeline.files import json_bytes
from pipeline.machine import snapshots

SETTING = "extract.run.store"
PLAN = "plan.json"
READ_BYTES = 8 << 20  # asked for at a time: about a block


def check_url(url: str) -> None:
    """Look whether a store's URL can be opened here, without a word to the store itself.

    Args:
        url: of a folder, as in ``extract.run.store``; "" = none.

    Raises:
        ConfigError: it is no URL of a kind that is known, or the package that reads this kind is missing.
    """
    if url:
        _opened(url)


def store_of_work(url: str, identity: str) -> "Store | None":
    """Open a store's folder of the current work, which has the same name on every machine.

    Args:
        url: of the store; "" = none.
        identity: of the shards, for work outside a stage; else settings, inputs and code name it.

    Raises:
        ConfigError: as ``check_url``.
    """
    scratch = snapshots.folder("shards")
    return Store(f"{url.rstrip('/')}/{scratch.parent.name if scratch else identity[:16]}") if url else None


class Store:
    """A folder of shards somewhere else, known by its URL.

    Args:
        url: whatever fsspec opens: ``s3://bucket/folder``, ``file:///a/shared/disk``.

    Raises:
        ConfigError: as ``check_url``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.files, self.path = _opened(self.url)

    def begin(self, plan: dict[str, Any]) -> None:
        """Say in the store what its folder is for, before anything is computed that it might refuse.

        Args:
            plan: of the extraction.

        Raises:
            DataError: the store refuses.
        """
        with self._refusals("written"):
            if isinstance(self.files, LocalFileSystem):
                self.files.makedirs(self.path, exist_ok=True)
            self.files.pipe_file(f"{self.path}/{PLAN}", json_bytes(plan))

    def put(self, file: Path, record: dict[str, Any]) -> None:
        """Move a finished shard into the store, and commit it there.

        Args:
            file: the shard here; it is removed.
            record: its commit record; the store's has the name by which it holds the shard.

        Raises:
            DataError: the store refuses.
        """
        name = f"{file.stem}-{record['sha256'][:16]}{file.suffix}"
        with self._refusals("written", file.name):
            if not self._is_whole(name, record["bytes"]):
                self.files.put_file(str(file), f"{self.path}/{name}")
            self.files.pipe_file(f"{self.path}/{file.stem}.json", json.dumps({**record, "file": name}).encode())
        file.unlink()

    def committed(self, names: Collection[str], identity: str) -> dict[str, dict[str, Any]]:
        """Read the records of shards that are finished.

        Args:
            names: of shards in the plan.
            identity: hash of everything that decides their content.

        Raises:
            DataError: the store cannot be read.
        """
        with self._refusals("read"):
            sizes = self._sizes()
            paths = {name: f"{self.path}/{file}" for name in names if (file := f"{Path(name).stem}.json") in sizes}
            contents = self.files.cat(list(paths.values())) if paths else {}
        records = {name: _record(contents[path], identity) for name, path in paths.items()}
        return {name: record for name, record in records.items() if record and sizes.get(record["file"]) == record["bytes"]}

    def sha256(self, file: str) -> str:
        """Hash a shard as it lies in the store.

        Raises:
            DataError: it cannot be read.
        """
        with self._refusals("read", file), self.open(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]

    def open(self, file: str) -> BinaryIO:
        """Open a shard, to be read from its beginning to its end.

        Raises:
            DataError: it cannot be opened.
        """
        with self._refusals("read", file):
            stream: BinaryIO = self.files.open(f"{self.path}/{file}", "rb", block_size=READ_BYTES)
            return stream

    def _is_whole(self, file: str, size: int) -> bool:
        """Whether a file is there with all its bytes: then it is not written over, for others may read it."""
        self.files.invalidate_cache()
        try:
            return int(self.files.info(f"{self.path}/{file}")["size"]) == size
        except FileNotFoundError:
            return False

    def _sizes(self) -> dict[str, int]:
        """Bytes of every file in the folder, as it is now: others write too."""
        self.files.invalidate_cache()
        return {Path(path).name: int(facts["size"]) for path, facts in self.files.find(self.path, detail=True).items()}

    @contextlib.contextmanager
    def _refusals(self, done: str, file: str = "") -> Iterator[None]:
        """Raise whatever a store's own library does as one line: there are as many kinds of errors as there are stores."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            where = f"{self.url}/{file}" if file else self.url
            why = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{where} cannot be {done} ({why:.300}); see that the bucket exists and that this machine may use it, then run "
                "again: what is committed stays"
            ) from None


def _opened(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and path of a URL."""
    kind, _, path = url.partition("://")
    if not path.strip("/") or "::" in kind:
        raise ConfigError(f"{SETTING} is '{url}'; expected the URL of a folder, such as s3://bucket/states or file:///mnt/states")
    try:
        files, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        hint = "; s3:// needs: pip install 'slotloop[s3]'" if kind == "s3" else ""
        raise ConfigError(f"{SETTING} is '{url}', which cannot be opened here: {error}{hint}") from None
    return files, path.rstrip("/")


def _record(content: bytes, identity: str) -> dict[str, Any] | None:
    """A commit record; None if it is not of this content, or no record at all."""
    try:
        record: dict[str, Any] = json.loads(content)
        return record if record["identity"] == identity and {"file", "bytes"} <= set(record) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
