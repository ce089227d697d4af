"""Reading shards: any rows in any order, straight into the batch, every byte checked the first time it is read.

A row's states are read with one ``preadv`` into their place in the batch (no memory map: a file that was cut is an error and not a
signal). The small fields of a block are read together and kept. Python's lock is free while bytes are read and checked, so threads
read ahead of a model that computes.
"""

import os
import resource
import threading
import weakref
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.buffers import Buffers
from pipeline.data.shard_index import STATES, read_index, read_table
from pipeline.data.shard_writer import SCALE, TAR_UNIT, TOKEN_FIELDS, ShardError, damaged, layout, wrong
from pipeline.errors import DataError
from pipeline.files import sha256

NAMES = {"float32": "F32", "bfloat16": "BF16", "int8": "I8", "float8_e4m3fn": "F8_E4M3"}
NUMPY = {"I32": "<i4", "F32": "<f4", "BOOL": "?"}
KEPT = 256 << 20  # bytes of small fields that are kept


class ShardReader:
    """A folder of shards, opened: one stored row for every (split, draw, row).

    Attributes:
        index: what extract wrote about itself.
        fingerprint: hash of the index and so of every byte.
        channel: scale of each channel, of states in eight bits; else None.

    Raises:
        DataError: extraction never finished, or the index is damaged.
        ShardError: a shard is missing or of another size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self.fingerprint: str = self.index["fingerprint"]
        table, self.channel = read_table(self.folder, self.index)
        self._shards: list[dict[str, Any]] = self.index["shards"]
        self._fields: list[str] = self.index["fields"]
        self._offset, self._bytes, self._crc = table["block/offset"], table["block/bytes"], table["block/crc"]
        self._starts, self._rows = table["block/fields"], table["block/rows"]
        self._shard_of = np.repeat(np.arange(len(self._shards)), [s["blocks"] for s in self._shards])
        self.uid, self.length, self._row_crc = table["row/uid"], table["row/length"], table["row/crc"]
        self.block = np.repeat(np.arange(len(self._rows)), self._rows)
        ends = np.cumsum(self.length)
        first = np.concatenate([[0], np.cumsum(self._rows)])
        self._tokens = np.diff(np.concatenate([[0], ends])[first])  # of each block
        self._start = ends - self.length - np.concatenate([[0], ends])[first[self.block]]  # token of its block where a row begins
        self._width = int(self.index["dim"]) * STATES[self.index["dtype"]].itemsize  # bytes of one token's states
        self._hidden = self._starts[:, self._fields.index("hidden")]
        small = {**TOKEN_FIELDS, **(SCALE if "scale" in self._fields else {})}
        self._packed = np.dtype([(name, NUMPY[kind]) for name, kind in small.items()])
        self._padding = np.zeros((), self._packed)
        self._padding["tokens"] = self._padding["targets"] = self.index["pad_id"]
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)
        self._columns: OrderedDict[int, memoryview] = OrderedDict()
        self._held = 0
        self._block_checked, self._row_checked = np.zeros(len(self._rows), bool), np.zeros(len(self.uid), bool)
        self._lock, self._buffers = threading.Lock(), Buffers()
        _allow_files(len(self._shards))

    def rows(self, split: str, draw: int) -> Tensor:
        """Stored positions of one draw of a split, by ascending uid.

        Raises:
            DataError: nothing is stored for it.
        """
        first, found = 0, list[Tensor]()
        for shard in self._shards:
            if (shard["split"], shard["draw"]) == (split, draw):
                found.append(torch.arange(first, first + shard["rows"]))
            first += shard["rows"]
        if not found:
            raise DataError(f"{self.folder} holds no draw {draw} of split '{split}'; run dvc repro extract")
        positions = torch.cat(found)
        return positions[torch.from_numpy(self.uid)[positions].argsort(stable=True)]

    def read(self, positions: Tensor, padded: int) -> dict[str, Tensor]:
        """Stored rows, padded to ``padded`` tokens: ``hidden`` (batch, padded, dim), the per-token fields, ``length`` (batch).

        Raises:
            ShardError: bytes are missing or are not those that were written.
        """
        at = positions.numpy()
        blocks, lengths, starts = self.block[at], self.length[at], self._start[at]
        offsets = self._hidden[blocks] + starts * self._width
        states = self._buffers.take(len(at) * padded * self._width)
        packed = np.empty((len(at), padded), self._packed)
        flat, view, small = states.numpy(), states.numpy().data, packed.reshape(-1).view(np.uint8).data
        line, token = padded * self._width, self._packed.itemsize
        columns = (at, blocks, self._shard_of[blocks], self._row_checked[at], lengths, starts, offsets)
        for i, (row, block, number, checked, length, start, offset) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            size, begin, beside = length * self._width, i * line, i * padded * token
            piece = view[begin : begin + size]
            opened = self._files.get(number)
            if os.preadv(self._open(number) if opened is None else opened, (piece,), offset) != size:
                raise self._damaged("the file ends here", block, "hidden")
            if not checked:
                self._check_row(row, block, piece)
            held = self._columns.get(block)
            held = self._small(block) if held is None else held
            small[beside : beside + length * token] = held[start * token : (start + length) * token]
            if length < padded:
                packed[i, length:] = self._padding
                flat[begin + size : begin + line] = 0
        kind = STATES[self.index["dtype"]]
        found = {name: torch.from_numpy(packed[name].copy()) for name in self._packed.names or ()}
        hidden = states.view(kind).unflatten(0, (len(at), padded, -1))
        return {**found, "hidden": hidden, "length": torch.from_numpy(lengths)}

    def verify(self) -> int:
        """Check every byte against the index; returns how many there were.

        Raises:
            ShardError: a shard is not what was written.
        """
        for shard in self._shards:
            if (found := sha256(self.folder / shard["file"])) != shard["sha256"]:
                what = f"sha256 is {found[:12]}, the index says {shard['sha256'][:12]}"
                raise damaged(what, self.folder / shard["file"])
        return int(sum(shard["bytes"] for shard in self._shards))

    def _file(self, block: int) -> int:
        number = int(self._shard_of[block])
        opened = self._files.get(number)
        return self._open(number) if opened is None else opened

    def _open(self, number: int) -> int:
        """Open a shard; what follows its last block must be the end of a tar."""
        shard = self._shards[number]
        path = self.folder / shard["file"]
        with self._lock:
            if number not in self._files:
                try:
                    opened = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise wrong(f"it cannot be read any more ({error.strerror})", path) from None
                last = int(np.searchsorted(self._shard_of, number, side="right")) - 1
                end = int(self._offset[last] + self._bytes[last])
                if os.pread(opened, shard["bytes"] - end + 1, end) != bytes(shard["bytes"] - end):
                    os.close(opened)
                    raise damaged("it does not end as a tar does", path)
                self._files[number] = opened
            return self._files[number]

    def _check_row(self, row: int, block: int, piece: memoryview) -> None:
        if zlib.crc32(piece) != self._row_crc[row]:
            raise self._damaged(f"states of row {self.uid[row]} are not those that were written", block, "hidden")
        self._row_checked[row] = True

    def _small(self, block: int) -> memoryview:
        """The per-token fields of a block, one record a token, as bytes: numpy copies records field by field."""
        begin, end = int(self._offset[block]), int(self._offset[block] + self._bytes[block])
        hidden = int(self._hidden[block])
        after = hidden + int(self._tokens[block]) * self._width
        front, back = self._bytes_at(block, begin, hidden), self._bytes_at(block, after, end)
        if not self._block_checked[block]:
            self._check_block(block, front, back)
        columns = np.empty(int(self._tokens[block]), self._packed)
        for name in self._packed.names or ():
            start = int(self._starts[block, self._fields.index(name)])
            part, at = (front, start - begin) if start < hidden else (back, start - after)
            try:
                columns[name] = np.frombuffer(part, self._packed[name], len(columns), at)
            except ValueError:
                raise self._damaged("it does not lie within its block", block, name) from None
        found = columns.view(np.uint8).data
        with self._lock:
            if block in self._columns:  # another thread was faster
                return found
            self._columns[block] = found
            self._held += found.nbytes
            while self._held > KEPT and len(self._columns) > 1:
                self._held -= self._columns.popitem(last=False)[1].nbytes
        return found

    def _bytes_at(self, block: int, begin: int, end: int) -> bytes:
        found = os.pread(self._file(block), end - begin, begin)
        if len(found) != end - begin:
            raise self._damaged("the file ends here", block)
        return found

    def _check_block(self, block: int, front: bytes, back: bytes) -> None:
        """Tar header, fields and filling are those that were written, and the fields are those that the index speaks of."""
        if zlib.crc32(front[:TAR_UNIT], zlib.crc32(back, zlib.crc32(front[TAR_UNIT:]))) != self._crc[block]:
            raise self._damaged("what stands beside the states is not what was written", block)
        try:
            found, base = layout(front[TAR_UNIT:])
        except ValueError as error:
            raise self._damaged(str(error), block) from None
        tokens, rows, dim = int(self._tokens[block]), int(self._rows[block]), int(self.index["dim"])
        wanted = {name: (kind, [tokens]) for name, kind in {**TOKEN_FIELDS, **SCALE}.items()}
        wanted |= {"uid": ("I64", [rows]), "cu_seqlens": ("I64", [rows + 1]), "hidden": (NAMES[self.index["dtype"]], [tokens, dim])}
        origin = int(self._offset[block]) + TAR_UNIT + base
        for name, start in zip(self._fields, self._starts[block].tolist(), strict=True):
            kind, shape, offsets = (found.get(name, {}).get(key) for key in ("dtype", "shape", "data_offsets"))
            if (kind, shape) != wanted[name]:
                raise self._damaged(f"{kind} {shape}, the index speaks of {wanted[name][0]} {wanted[name][1]}", block, name)
            if not isinstance(offsets, list) or offsets[:1] != [start - origin]:
                raise self._damaged(f"it lies at {offsets}, the index says {start - origin}", block, name)
        self._block_checked[block] = True

    def _damaged(self, what: str, block: int, field: str = "") -> ShardError:
        number = int(self._shard_of[block])
        member = block - int(np.searchsorted(self._shard_of, number))
        return damaged(what, self.folder / self._shards[number]["file"], f"{member:06d}.safetensors", field)


def _close(files: dict[int, int]) -> None:
    for opened in files.values():
        os.close(opened)


def _allow_files(count: int) -> None:
    """Every shard stays open: ask for as many files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
