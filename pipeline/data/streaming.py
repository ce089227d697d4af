"""Shards read as a stream, by webdataset's own reader: for disks and networks on which to seek is to wait. A door to webdataset.

Files come in an order of (seed, epoch), each read from its beginning to its end; rows are shuffled within a window of blocks. That
order is a pure function, so what is to be read next follows from how many rows have been read: a resumed run opens the file that
comes next, passes over what it has seen, and goes on exactly. webdataset's own shuffle could only replay, its buffer is its state.

Checksums come from the folder's index, so every byte is checked the first time it is read, as ``ShardReader`` does. Nothing is
decoded by webdataset, nothing is written to disk. Several processes read the whole stream each, and take their share of it.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor
from webdataset import tariterators

from components.batch import Batch
from components.training.order import DeterministicSampler
from pipeline.data.batches import Chosen, Deferred, stored_batch
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shard_writer import TAR_UNIT, member_header
from pipeline.errors import ConfigError, DataError

SCHEMES = ("", "file", "http", "https")  # webdataset would also run what follows "pipe:"
BROKEN = (OSError, EOFError, ValueError, OverflowError, tarfile.TarError, zlib.error)  # what reading a damaged tar raises
Row = tuple[int, memoryview, memoryview]  # stored position, its states, its tokens' small fields


class StreamedSource:
    """Batches from shards, read forwards; epochs walk the stored draws. Rows are numbered as they are stored.

    Args:
        table: what is stored where.
        split: "train" or "validation".
        near: blocks that are held, among which rows are shuffled; at least 1.
        urls: where the files lie, known by their names; empty = where extract put them: beside the index, or in its store.

    Raises:
        ConfigError: a URL is of a kind that is not opened.
        DataError: a file of the index has no URL, or draws are not cut alike.
    """

    stage, nested = "extract", 1  # it is read forwards, one draw after the other

    def __init__(self, table: ShardIndex, split: str, near: int = 16, urls: Sequence[str] = ()) -> None:
        self.table, self.near, self.urls = table, max(near, 1), located(table, split, urls)
        draws = 1 if split == "validation" else int(table.index["draws"])
        self.positions = torch.stack([table.stored(split, draw) for draw in range(draws)])
        blocks = torch.from_numpy(table.block)[self.positions]
        self.first = blocks[:, 0].tolist()  # block of each draw
        blocks = blocks - blocks[:, :1]
        files = torch.stack([torch.from_numpy(table.shard)[first : first + int(blocks.max()) + 1] for first in self.first])
        files = files - files[:, :1]
        uid = torch.from_numpy(table.uid)[self.positions]
        if any((each != each[0]).any() for each in (blocks, files, uid)):
            raise DataError(f"{table.folder}: draws of {split} do not hold the same rows in the same places; run dvc repro extract")
        self.blocks, self.files = blocks[0], files[0]
        self.layer, self.taps, self.fingerprint = int(table.index["layer"]), table.taps, table.fingerprint
        self.padded = torch.full((len(self.blocks),), int(table.index["sequence"]))

    def __len__(self) -> int:
        return len(self.blocks)

    def sampler(self, size: int, seed: int) -> DeterministicSampler:
        return DeterministicSampler(self.padded, size, seed, self.blocks, self.near, self.files)

    def batch(self, rows: Tensor, epochs: Tensor) -> Batch:
        return next(self.deferred(iter([(rows, epochs)])))()

    def deferred(self, chosen: Iterator[Chosen], sampler: DeterministicSampler | None = None) -> Iterator[Deferred]:
        window = _Window(self, sampler.reading if sampler else lambda epoch: torch.arange(len(self.files)))
        return (partial(self._made, window.take(*pair)) for pair in chosen)

    def _made(self, rows: list[Row]) -> Batch:
        table = self.table
        padded, lengths = int(table.index["sequence"]), table.length[[row for row, *_ in rows]]
        states = np.zeros((len(rows), padded * table.width), np.uint8)
        packed = np.full((len(rows), padded), table.padding)
        for i, (row, hidden, small) in enumerate(rows):
            if not table.row_checked[row]:
                table.check_row(row, hidden)
            states[i, : len(hidden)] = hidden
            packed[i, : lengths[i]] = np.frombuffer(small, table.packed)
        return stored_batch(table, table.batch(torch.from_numpy(states.reshape(-1)), packed, lengths))


class _Block:
    """One block in memory."""

    def __init__(self, table: ShardIndex, number: int, content: bytes) -> None:
        self.table, self.content = table, memoryview(content)
        before = int(table.offset[number]) + TAR_UNIT
        self.hidden, after = (max(at - before, 0) for at in table.states(number))
        front = member_header(table.member(number), len(content)) + content[: self.hidden]
        self.small = table.columns(number, front, content[after:] + bytes(-len(content) % TAR_UNIT))

    def row(self, position: int) -> Row:
        """Views of one of its rows."""
        start, length = int(self.table.start[position]), int(self.table.length[position])
        width, token = self.table.width, self.table.packed.itemsize
        hidden = self.content[self.hidden + start * width : self.hidden + (start + length) * width]
        return position, hidden, self.small[start * token : (start + length) * token]


class _Window:
    """The blocks that rows are taken from: the newest ``near`` of a stream that starts with the first row's and never goes back.

    Args:
        source: of the rows.
        reading: blocks in the order of an epoch.
    """

    def __init__(self, source: StreamedSource, reading: Callable[[int], Tensor]) -> None:
        self.source, self.reading = source, reading
        self.places: dict[int, list[int]] = {}  # epoch -> where in its order each block stands
        self.blocks: dict[tuple[int, int], _Block] = {}
        self.stream: Iterator[tuple[tuple[int, int], _Block]] = iter(())
        self.newest = (-1, -1)  # epoch and place of the block that was read last

    def take(self, rows: Tensor, epochs: Tensor) -> list[Row]:
        """The rows, read up to the last of them."""
        source, by_number = self.source, dict[int, Row]()
        triples = zip(epochs.tolist(), source.blocks[rows].tolist(), rows.tolist(), strict=True)
        for (epoch, _), number, block, row in sorted((self._place(e, b), i, b, r) for i, (e, b, r) in enumerate(triples)):
            position = int(source.positions[epoch % len(source.positions), row])
            by_number[number] = self._block(epoch, block).row(position)
        return [by_number[number] for number in range(len(by_number))]

    def _place(self, epoch: int, block: int) -> tuple[int, int]:
        if epoch not in self.places:
            self.places = {e: places for e, places in self.places.items() if e >= epoch - 1}
            self.places[epoch] = self.reading(epoch).argsort().tolist()
        return epoch, self.places[epoch][block]

    def _block(self, epoch: int, block: int) -> _Block:
        place = self._place(epoch, block)
        if (epoch, block) not in self.blocks and (place <= self.newest or self.newest < (0, 0)):
            self.blocks, self.stream = {}, self._read(epoch, place[1] - place[1] % self.source.near)
        while (epoch, block) not in self.blocks:
            key, content = next(self.stream)
            self.blocks[key], self.newest = content, self._place(*key)
            if len(self.blocks) > self.source.near:
                del self.blocks[next(iter(self.blocks))]
        return self.blocks[epoch, block]

    def _read(self, epoch: int, place: int) -> Iterator[tuple[tuple[int, int], _Block]]:
        """Every block from a place on, epoch after epoch."""
        source = self.source
        while True:
            order = self.reading(epoch)
            files = source.files[order].unique_consecutive().tolist()
            first = files.index(int(source.files[order[place]]))
            begun = int((source.files[order] == source.files[order[place]]).nonzero()[0])
            base = source.first[epoch % len(source.first)]
            shard = int(source.table.shard[base])
            contents = read_blocks(source.table, [shard + file for file in files[first:]], source.urls)
            for at, (number, content) in enumerate(contents, begun):
                if at >= place:
                    yield (epoch, number - base), _Block(source.table, number, content)
            epoch, place = epoch + 1, 0


def read_blocks(table: ShardIndex, shards: Sequence[int], urls: Mapping[str, str]) -> Iterator[tuple[int, bytes]]:
    """Number and content of every block of some files, in their order.

    Raises:
        ShardError: a file cannot be read, or holds other members than were written.
    """
    broken = Exception if table.store else BROKEN  # a store's library has errors of its own
    streams = _opened(table, [urls[table.shards[shard]["file"]] for shard in shards])
    samples = tariterators.group_by_keys(tariterators.tar_file_expander(_closed(streams)))
    for shard in shards:
        for block in np.flatnonzero(table.shard == shard).tolist():
            try:
                sample: dict[str, Any] = next(samples, {})
            except broken as error:
                raise table.damaged(f"it cannot be read ({str(error) or type(error).__name__:.200})", block) from None
            expected = {"__key__": f"{table.member(block):06d}", "__url__": urls[table.shards[shard]["file"]]}
            if {name: sample.get(name) for name in expected} != expected or "safetensors" not in sample:
                raise table.damaged(
                    f"the stream has {sample.get('__key__', 'an end')} of {sample.get('__url__', 'it')} here", block
                )
            yield block, sample["safetensors"]


def located(table: ShardIndex, split: str, urls: Sequence[str]) -> dict[str, str]:
    """File of a split -> its path or URL.

    Raises:
        ConfigError: a URL is of a kind that is not opened.
        DataError: a file has none.
    """
    for url in urls:
        if (scheme := urlsplit(url).scheme) not in SCHEMES:
            raise ConfigError(
                f"sources.streamed.urls: '{url}' is of kind '{scheme}:'; expected a path, file://, http:// or https://"
            )
    known = {PurePosixPath(urlsplit(url).path).name: url for url in urls}
    files = [shard["file"] for shard in table.shards if shard["split"] == split]
    if not urls and table.store:
        return {file: f"{table.store.url}/{file}" for file in files}
    if not urls:
        return {file: str((table.folder / file).absolute()) for file in files}
    if missing := [file for file in files if file not in known]:
        raise DataError(f"sources.streamed.urls name no {missing[0]}, which {table.folder} speaks of ({len(missing)} are missing)")
    return {file: known[file] for file in files}


def _opened(table: ShardIndex, urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each file and its URL, opened when it is asked for: by the store if it lies there, else by webdataset."""
    for url in urls:
        where, _, file = url.rpartition("/")
        if table.store and where == table.store.url:
            yield {"url": url, "stream": table.store.open(file)}
        else:
            yield from tariterators.url_opener([{"url": url}])


def _closed(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same streams, each closed when the next one is opened: webdataset leaves that to the garbage collector."""
    for source in sources:
        try:
            yield source
        finally:
            with suppress(OSError):  # a download that failed: its blocks are missing, and that is what is said
                source["stream"].close()
