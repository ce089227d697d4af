"""Reading shards: any rows in any order, straight into the batch, every byte checked the first time it is read.

A row's states are read with one ``preadv`` into their place in the batch (no memory map: a file that was cut is an error and not a
signal). The small fields of a block are read together and kept. Python's lock is free while bytes are read and checked, so threads
read ahead of a model that computes.
"""

import os
import resource
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.buffers import Buffers
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shard_writer import METRICS, TAR_UNIT, damaged, wrong
from pipeline.errors import ConfigError
from pipeline.files import sha256
from pipeline.progress import watched

CACHE_BYTES = 256 << 20  # of small fields, over all blocks
TAIL = 21 * TAR_UNIT  # at most: a tar ends with two units of zeros, and more up to a whole record


def verify(folder: str | Path) -> int:
    """Check every byte of a folder's shards, here or in their store; returns how many there were.

    Raises:
        DataError: extraction never finished, or a shard cannot be read or is not what was written.
    """
    table = ShardIndex(folder)
    return _verified(table) if table.store else ShardReader(folder).verify()


class ShardReader:
    """A folder of shards, opened.

    Attributes:
        table: what is stored where.
        index, fingerprint, channel, uid, length, block: the table's.

    Raises:
        ConfigError: the shards lie in a store.
        DataError: extraction never finished, or the index is damaged.
        ShardError: a shard is missing or of another size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.table = Path(folder), ShardIndex(folder)
        table = self.table
        if table.store:
            raise ConfigError(
                f"the shards of {folder} lie in {table.store.url}, where rows are read as a stream; set states = "
                "'@sources.streamed' for every stage that reads them"
            )
        self.index, self.fingerprint, self.channel = table.index, table.fingerprint, table.channel
        self.uid, self.length, self.block = table.uid, table.length, table.block
        for shard in table.shards:
            _check_file(self.folder / shard["file"], shard["bytes"])
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)
        self._columns: OrderedDict[int, memoryview] = OrderedDict()
        self._cached_bytes = 0
        self._lock, self._buffers = threading.Lock(), Buffers()
        _allow_files(len(table.shards))

    def rows(self, split: str, draw: int) -> Tensor:
        """Stored positions of one draw of a split, by ascending uid.

        Raises:
            DataError: nothing is stored for it.
        """
        positions = self.table.stored(split, draw)
        return positions[torch.from_numpy(self.uid)[positions].argsort(stable=True)]

    def read(self, positions: Tensor, padded: int) -> dict[str, Tensor]:
        """Stored rows, padded to ``padded`` tokens: ``hidden`` (batch, padded, dim), the per-token fields, ``length`` (batch).

        Raises:
            ShardError: bytes are missing or are not those that were written.
        """
        table, at = self.table, positions.numpy()
        blocks, lengths, starts = self.block[at], self.length[at], table.start[at]
        records = {block: self._small(block) for block in dict.fromkeys(blocks.tolist())}  # after it, offsets are known to be right
        offsets = table.hidden[blocks] + starts * table.width
        states = self._buffers.take(len(at) * padded * table.width)
        packed = np.empty((len(at), padded), table.packed)
        flat, view, small = states.numpy(), states.numpy().data, packed.reshape(-1).view(np.uint8).data
        line, token = padded * table.width, table.packed.itemsize
        columns = (at, blocks, table.shard[blocks], table.row_checked[at], lengths, starts, offsets)
        for i, (row, block, number, checked, length, start, offset) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            size, begin, beside = length * table.width, i * line, i * padded * token
            piece = view[begin : begin + size]
            descriptor = self._files.get(number)
            if os.preadv(self._open(number) if descriptor is None else descriptor, (piece,), offset) != size:
                raise table.damaged("the file ends here", block, "hidden")
            if not checked:
                table.check_row(row, piece)
            small[beside : beside + length * token] = records[block][start * token : (start + length) * token]
            if length < padded:
                packed[i, length:] = table.padding
                flat[begin + size : begin + line] = 0
        return table.batch(states, packed, lengths)

    def verify(self) -> int:
        """Check every byte against the index; returns how many there were.

        Raises:
            ShardError: a shard is not what was written.
        """
        return _verified(self.table)

    def _open(self, number: int) -> int:
        """Open a shard; what follows its last block must be the end of a tar."""
        table, shard = self.table, self.table.shards[number]
        path = self.folder / shard["file"]
        with self._lock:
            if number not in self._files:
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise wrong(f"it cannot be read any more ({error.strerror})", path) from None
                last = int(np.searchsorted(table.shard, number, side="right")) - 1
                end = int(table.offset[last]) + int(table.size[last])
                tail = shard["bytes"] - end
                if not 2 * TAR_UNIT <= tail <= TAIL or os.pread(descriptor, tail + 1, end) != bytes(tail):
                    os.close(descriptor)
                    raise damaged("it does not end as a tar does", path)
                self._files[number] = descriptor
            return self._files[number]

    def _small(self, block: int) -> memoryview:
        """The per-token fields of a block."""
        if (known := self._columns.get(block)) is not None:
            return known
        begin, (hidden, after) = int(self.table.offset[block]), self.table.states(block)
        end = begin + int(self.table.size[block])
        columns = self.table.columns(block, self._bytes_at(block, begin, hidden), self._bytes_at(block, after, end))
        with self._lock:
            if block in self._columns:  # another thread was faster
                return columns
            self._columns[block] = columns
            self._cached_bytes += columns.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._columns) > 1:
                self._cached_bytes -= self._columns.popitem(last=False)[1].nbytes
        return columns

    def _bytes_at(self, block: int, begin: int, end: int) -> bytes:
        number = int(self.table.shard[block])
        if not 0 <= begin <= end <= self.table.shards[number]["bytes"]:
            raise self.table.damaged("the index speaks of bytes that it does not have", block)
        descriptor = self._files.get(number)
        data = os.pread(self._open(number) if descriptor is None else descriptor, end - begin, begin)
        if len(data) != end - begin:
            raise self.table.damaged("the file ends here", block)
        return data


def _verified(table: ShardIndex) -> int:
    """Check the hash of every shard, and of the metrics beside the index; returns the bytes of the shards."""
    where = table.store.url if table.store else table.folder
    for shard in watched(table.shards, f"verify {where}", len(table.shards), "shard"):
        digest = table.store.sha256(shard["file"]) if table.store else sha256(table.folder / shard["file"])
        if digest != shard["sha256"]:
            raise damaged(f"sha256 is {digest[:12]}, the index says {shard['sha256'][:12]}", f"{where}/{shard['file']}")
    if (metrics := table.folder / METRICS).is_file() and sha256(metrics) != table.index.get("metrics"):
        raise damaged("it is not what was written", metrics)
    return int(sum(shard["bytes"] for shard in table.shards))


def _check_file(path: Path, size: int) -> None:
    """What is cheap to see at once."""
    if not path.is_file():
        raise damaged("the index lists it, it does not exist", path)
    if (actual := path.stat().st_size) != size:
        raise damaged(f"{actual} bytes, the index says {size}", path)


def _close(files: dict[int, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)


def _allow_files(count: int) -> None:
    """Every shard stays open: ask for as many files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard))
