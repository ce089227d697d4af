"""Writing shards of hidden states: USTAR tars of blocks, as WebDataset, GNU tar and safetensors read them. The door to webdataset.

A tar member is one block: rows as safetensors, ragged, without padding. Per-token fields of all its rows lie end to end
(``cu_seqlens`` cuts them), so a row's states are one stretch of the file, and the index says where it begins. Every byte of a shard
is covered by a checksum of the index: states by one per row, what is left of a block by one per block. Tars carry no clock, user or
host: same states, same bytes. A shard appears under its name when it is whole; its commit record follows; the index is last.
"""

import hashlib
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import webdataset as wds
from safetensors.torch import save
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import json_bytes, put_durably, storing, write_durably

Block = dict[str, Tensor]
Layout = dict[str, dict[str, Any]]  # field -> dtype, shape, data_offsets, as a safetensors header has them

FORMAT = 3
INDEX, ROWS, METRICS = "index.json", "index.safetensors", "metrics.json"
TAR_UNIT = 512
DTYPES = {"I32": torch.int32, "I64": torch.int64, "F32": torch.float32, "BOOL": torch.bool}
TOKEN_FIELDS = {"tokens": "I32", "targets": "I32", "masked": "BOOL", "weights": "F32"}  # beside the states
ROW_FIELDS = {"uid": "I64", "cu_seqlens": "I64"}
SCALE = {"scale": "F32"}  # of states in eight bits, a token's


class ShardError(DataError):
    """What is wrong with a shard, and where: shard :: member :: field."""


def wrong(what: str, shard: str | Path, member: str = "", field: str = "") -> ShardError:
    """Make a ShardError that says where."""
    return ShardError(f"{' :: '.join(filter(None, (str(shard), member, field)))}: {what}")


def damaged(what: str, shard: str | Path, member: str = "", field: str = "") -> ShardError:
    """A ShardError of a shard that has to be made or fetched again."""
    return wrong(f"{what}; run dvc repro extract, or dvc pull if it was made elsewhere", shard, member, field)


def write_shard(path: Path, blocks: Iterable[Block], identity: str, notes: Callable[[], dict[str, Any]] = dict) -> dict[str, Any]:
    """Write one tar of blocks and its commit record (``<name>.json`` beside it); returns the record.

    Args:
        path: of the tar.
        blocks: rows with ``hidden``, the per-token fields, ``uid`` and ``cu_seqlens``.
        identity: hash of everything that decides the content; a shard with another one is not this one.
        notes: what else the record shall hold; called after the last block.

    Raises:
        ShardError: a block holds a non-finite number or fields that do not fit each other, or there are no blocks.
    """
    temporary = path.with_name(path.name + ".tmp")
    with storing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        record = _write_tar(path, temporary, blocks, identity)
        record |= notes()
        put_durably(temporary, path)
    write_durably(path.with_suffix(".json"), json.dumps(record).encode())
    return record


def _write_tar(path: Path, temporary: Path, blocks: Iterable[Block], identity: str) -> dict[str, Any]:
    """Write the tar beside its place and return its record."""
    record: dict[str, Any] = {"identity": identity, "file": path.name, "blocks": [], "uid": [], "length": [], "crc": []}
    with temporary.open("wb") as file:
        hashed = _Hashed(file)
        with wds.TarWriter(hashed, user="", group="", mtime=0, encoder=False) as tar:
            offset = 0
            for number, block in enumerate(blocks):
                member = f"{number:06d}.safetensors"
                _check(block, path, member)
                data = save({name: tensor.contiguous() for name, tensor in block.items()})
                tar.write({"__key__": f"{number:06d}", "safetensors": data})
                size = TAR_UNIT + len(data) + -len(data) % TAR_UNIT
                record["blocks"].append(_block_entry(offset, size, data, block, record))
                offset += size
        file.flush()
    if not record["uid"]:
        temporary.unlink()
        raise wrong("no examples to write", path)
    _finish(record, temporary, hashed)
    return record


def committed(path: Path, identity: str) -> dict[str, Any] | None:
    """The record of a shard that was finished before; None if it has to be written."""
    try:
        record: dict[str, Any] = json.loads(path.with_suffix(".json").read_bytes())
        return record if record["identity"] == identity and path.stat().st_size == record["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_index(folder: Path, plan: dict[str, Any], records: list[dict[str, Any]], channel: Tensor | None = None) -> None:
    """Write ``index.safetensors`` (a line per block and per row) and, last of all, ``index.json``.

    Args:
        folder: of the shards.
        plan: what was extracted: digests of backbone and prepared data, layer, fields, batch plan, hash of ``metrics.json``.
        records: of every shard, in the order of their rows; each with its ``split`` and ``draw``.
        channel: scale of each channel, of states in eight bits.

    Raises:
        ShardError: a row is stored twice in a draw, or shards differ in their fields.
    """
    seen: dict[tuple[str, int], set[int]] = {}
    for record in records:
        known = seen.setdefault((record["split"], record["draw"]), set())
        if twice := known & set(record["uid"]):
            raise wrong(f"row {min(twice)} is stored twice", folder / record["file"])
        known |= set(record["uid"])
    blocks = [block for record in records for block in record["blocks"]]
    fields = sorted(blocks[0]["fields"])
    for record in records:
        if any(sorted(block["fields"]) != fields for block in record["blocks"]):
            raise wrong(f"other fields than in {records[0]['file']}: {', '.join(fields)}", folder / record["file"])
    columns = {
        "block/offset": [b["offset"] for b in blocks],
        "block/bytes": [b["bytes"] for b in blocks],
        "block/rows": [b["rows"] for b in blocks],
        "block/crc": [b["crc"] for b in blocks],
        "block/fields": [[b["fields"][name] for name in fields] for b in blocks],
        "row/uid": [uid for record in records for uid in record["uid"]],
        "row/length": [length for record in records for length in record["length"]],
        "row/crc": [crc for record in records for crc in record["crc"]],
    }
    arrays = {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()}
    data = save(arrays if channel is None else {**arrays, "channel": channel.float()})
    write_durably(folder / ROWS, data)
    shards = [
        {**{k: r[k] for k in ("file", "bytes", "sha256", "split", "draw")}, "blocks": len(r["blocks"]), "rows": len(r["uid"])}
        for r in records
    ]
    index = {**plan, "format": FORMAT, "fields": fields, "rows": hashlib.sha256(data).hexdigest(), "shards": shards}
    index["fingerprint"] = hashlib.sha256(json_bytes(index)).hexdigest()
    write_durably(folder / INDEX, json_bytes(index))


def layout(data: bytes | memoryview) -> tuple[Layout, int]:
    """Fields of a block by its header, and where their bytes begin.

    Raises:
        ValueError: it is no safetensors header.
    """
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < size <= len(data) - 8:
        raise ValueError("no safetensors header")
    try:
        header = json.loads(bytes(data[8 : 8 + size]))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ValueError("no safetensors header")
    header.pop("__metadata__", None)
    return header, 8 + size


def member_header(number: int, size: int) -> bytes:
    """The tar header of a block, as it is written: a stream hands out members without theirs, and checksums cover it."""
    head = tarfile.TarInfo(f"{number:06d}.safetensors")
    head.size, head.mode = size, 0o444
    return head.tobuf(tarfile.USTAR_FORMAT)


class _Hashed:
    """A file that knows the hash and number of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """As a file's."""
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


def _finish(record: dict[str, Any], temporary: Path, hashed: _Hashed) -> None:
    """Size and hash of the whole file; the tar headers enter their blocks' checksums."""
    record |= {"bytes": hashed.size, "sha256": hashed.hash.hexdigest()}
    with temporary.open("rb") as file:
        for block in record["blocks"]:
            file.seek(block["offset"])
            block["crc"] = zlib.crc32(file.read(TAR_UNIT), block["crc"])


def _check(block: Block, path: Path, member: str) -> None:
    """Fields of a block fit each other, and its states are numbers."""
    names = {"hidden", *TOKEN_FIELDS, *ROW_FIELDS}
    if amiss := names ^ (set(block) - set(SCALE)):
        raise wrong(f"a block has {', '.join(sorted(names))}, these are amiss: {', '.join(sorted(amiss))}", path, member)
    rows, tokens = len(block["uid"]), len(block["hidden"])
    cuts, lengths = block["cu_seqlens"], block["cu_seqlens"].diff()
    if len(cuts) != rows + 1 or (int(cuts[0]), int(cuts[-1])) != (0, tokens) or not bool((lengths > 0).all()):
        raise wrong(f"{len(lengths)} lengths of {tokens} tokens do not cut {rows} rows", path, member, "cu_seqlens")
    kinds = {**TOKEN_FIELDS, **ROW_FIELDS, **SCALE}
    for name, tensor in block.items():
        if name in kinds and tensor.dtype != DTYPES[kinds[name]]:
            raise wrong(f"{tensor.dtype} instead of {DTYPES[kinds[name]]}", path, member, name)
        if name not in ROW_FIELDS and len(tensor) != tokens:
            raise wrong(f"{len(tensor)} tokens, hidden has {tokens}", path, member, name)
        if tensor.dtype.itemsize > 1 and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise wrong("non-finite numbers; check the backbone", path, member, name)


def _block_entry(offset: int, size: int, data: bytes, block: Block, record: dict[str, Any]) -> dict[str, Any]:
    """Where a block and its fields lie, and its checksums; its rows are added to the record."""
    fields, base = layout(data)
    lengths = block["cu_seqlens"].diff().tolist()
    record["uid"] += block["uid"].tolist()
    record["length"] += lengths
    begin, end = (base + at for at in fields["hidden"]["data_offsets"])
    width = (end - begin) // len(block["hidden"])
    at = begin
    for length in lengths:
        record["crc"].append(zlib.crc32(memoryview(data)[at : at + length * width]))
        at += length * width
    starts = {name: offset + TAR_UNIT + base + entry["data_offsets"][0] for name, entry in fields.items()}
    return {"offset": offset, "bytes": size, "rows": len(lengths), "fields": starts, "crc": frame_crc(data, begin, end)}


def frame_crc(data: bytes | memoryview, begin: int, end: int) -> int:
    """Checksum of a block without its states (``begin..end``), with the zeros that fill its last tar unit."""
    view = memoryview(data)
    return zlib.crc32(bytes(-len(view) % TAR_UNIT), zlib.crc32(view[end:], zlib.crc32(view[:begin])))


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written where ``folder`` is or will be."""
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
