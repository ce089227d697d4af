"""The samples of `bench.data`, and the ways in which they are stored: our shards, WebDataset's own members, MosaicML streaming,
LitData, memory maps. A layout is written once and gives passes: each call of a pass delivers one shuffled epoch of batches.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader

from bench.pool import pooled_steps
from components.batch import Batch
from pipeline.data.batches import CachedSource
from pipeline.data.loading import TrainLoader
from pipeline.data.reader import ShardReader
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shard_writer import write_index, write_shard
from pipeline.data.streaming import StreamedSource

BLOCK, SHARD = 8 << 20, 256 << 20  # bytes, as gin/extract.gin has them
BESIDE = {"tokens": torch.int32, "targets": torch.int32, "masked": torch.bool, "weights": torch.float32}
BUFFER = 1000  # samples of a shuffle buffer at most; a quarter of all at most

Sample = dict[str, Tensor]
Epoch = Callable[[], Iterator[Sample]]  # one pass over all samples


@dataclass(frozen=True)
class Samples:
    """Rows of equal length. A row's tokens are its number; its states come from a pool, so that any batch can be checked.

    Attributes:
        name: their size, for the table.
        tokens, dim: of a row's states, in bfloat16.
        batch: rows of a batch.
        rows: how many there are, a multiple of the batch.
    """

    name: str
    tokens: int
    dim: int
    batch: int
    rows: int
    pool: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Fill the pool."""
        count = max(2, (16 << 20) // (self.tokens * self.dim * 2))
        numbers = torch.randn(count, self.tokens, self.dim, generator=torch.Generator().manual_seed(0))
        object.__setattr__(self, "pool", numbers.bfloat16())

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.tokens * (2 * self.dim + sum(kind.itemsize for kind in BESIDE.values()))

    def row(self, number: int) -> Sample:
        """One row."""
        beside = {name: torch.full((self.tokens,), number).to(kind) for name, kind in BESIDE.items()}
        return {**beside, "hidden": self.pool[number % len(self.pool)]}

    def check(self, batch: Sample) -> list[int]:
        """The numbers of a batch's rows.

        Raises:
            AssertionError: the batch is not what was written.
        """
        numbers = batch["tokens"][:, 0].long()
        hidden = batch["hidden"]
        assert hidden.is_contiguous() and hidden.dtype == torch.bfloat16 and len(hidden) <= self.batch, hidden.shape
        assert torch.equal(hidden, self.pool[numbers % len(self.pool)]), "states of other rows"
        for name, kind in BESIDE.items():
            assert torch.equal(batch[name].to(kind), numbers[:, None].to(kind).expand(-1, self.tokens)), name
        return numbers.tolist()


def write_ours(folder: Path, samples: Samples) -> None:
    """Shards as extract writes them."""
    per_block = min(256, max(1, BLOCK // samples.width))
    per_shard = max(1, SHARD // samples.width)
    records = []
    for number, rows in enumerate(torch.arange(samples.rows).split(per_shard)):
        blocks = (_block(samples, chosen) for chosen in rows.split(per_block))
        record = write_shard(folder / f"train-00-{number:05d}.tar", blocks, "i" * 64)
        records.append({**record, "split": "train", "draw": 0})
    sizes = {"layer": 1, "dim": samples.dim, "mask_id": 0, "pad_id": 0, "sequence": samples.tokens}
    made_from = {"backbone": "b" * 64, "prepared": "c" * 64}
    write_index(folder, {**sizes, **made_from, "draws": 1, "dtype": "bfloat16", "padded": False}, records)


def ours(folder: Path, samples: Samples, threads: int, pool: bool = False) -> Epoch:
    """A freshly opened folder: its first pass checks every byte. ``threads`` read ahead; 0 = none. ``pool``: those of a pool."""
    training = TrainLoader(CachedSource(ShardReader(folder), "train"), samples.batch, seed=0)
    os.environ["SLOTLOOP_READERS"] = str(threads)
    return _epochs(pooled_steps(training, 0, 1, threads) if pool else training.steps(0, 1), samples)


def streamed(folder: Path, samples: Samples, threads: int) -> Epoch:
    """The same shards through webdataset's reader, in our order and checked."""
    training = TrainLoader(StreamedSource(ShardIndex(folder), "train"), samples.batch, seed=0)
    os.environ["SLOTLOOP_READERS"] = str(threads)
    return _epochs(training.steps(0, 1), samples)


def _epochs(steps: Iterator[list[Batch]], samples: Samples) -> Epoch:
    """Passes over endless steps."""

    def epoch() -> Iterator[Sample]:
        for _ in range(samples.rows // samples.batch):
            yield vars(next(steps)[0])

    return epoch


def write_webdataset(folder: Path, samples: Samples, kind: str) -> None:
    """One member a field, ``.npy`` or ``.pth``. numpy has no bfloat16: there, states are int16 that are viewed."""
    per_shard = max(1, SHARD // samples.width)
    for number, rows in enumerate(torch.arange(samples.rows).split(per_shard)):
        with wds.TarWriter(str(folder / f"{number:05d}.tar")) as tar:
            for row in rows.tolist():
                fields = samples.row(row)
                values = {name: value.clone() for name, value in fields.items()} if kind == "pth" else _numpy(fields)
                tar.write({"__key__": f"{row:09d}", **{f"{name}.{kind}": value for name, value in values.items()}})


def webdataset(folder: Path, samples: Samples, kind: str) -> Epoch:
    """The stock pipeline: shards shuffled, a shuffle buffer, decode, batches."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    data = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(min(BUFFER, samples.rows // 4)).decode()
    names = [f"{name}.{kind}" for name in (*BESIDE, "hidden")]
    batches = data.to_tuple(*names).batched(samples.batch, collation_fn=_stacked)
    return lambda: iter(batches)


def write_mds(folder: Path, samples: Samples) -> None:
    """MosaicML's shards: arrays of a fixed shape, not compressed."""
    from streaming import MDSWriter

    shapes = {name: f"ndarray:{value.dtype}:{','.join(map(str, value.shape))}" for name, value in _numpy(samples.row(0)).items()}
    shapes = {name: shape.replace(":bool:", ":uint8:") for name, shape in shapes.items()}
    with MDSWriter(out=str(folder), columns=shapes) as out:
        for row in range(samples.rows):
            values = _numpy(samples.row(row))
            out.write({**values, "masked": values["masked"].view(np.uint8)})


def mds(folder: Path, samples: Samples) -> Epoch:
    """Their data set behind torch's loader, without workers."""
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=samples.batch)
    loader = DataLoader(data, samples.batch, collate_fn=_stacked_fields)
    return lambda: iter(loader)


def write_litdata(folder: Path, samples: Samples) -> None:
    """LitData's chunks of their usual size. It cannot store bfloat16: states are int16 that are viewed."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes=64 << 20)
    for row in range(samples.rows):
        fields = samples.row(row)
        cache._add_item(row, {**fields, "hidden": fields["hidden"].view(torch.int16)})
    cache.done()
    cache.merge()


def litdata(folder: Path, samples: Samples) -> Epoch:
    """Their data set behind their loader, without workers."""
    from litdata import StreamingDataLoader, StreamingDataset

    loader = StreamingDataLoader(StreamingDataset(str(folder), shuffle=True), batch_size=samples.batch, collate_fn=_stacked_fields)
    return lambda: iter(loader)


def write_memmap(folder: Path, samples: Samples) -> None:
    """One array a field, end to end in a file."""
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in (*BESIDE, "hidden")}
        for row in range(samples.rows):
            for name, value in _numpy(samples.row(row)).items():
                files[name].write(value.tobytes())


def memmap(folder: Path, samples: Samples) -> Epoch:
    """Rows gathered from memory maps at random; nothing is checked."""
    kinds = {name: value.dtype for name, value in _numpy(samples.row(0)).items()}
    maps = {name: np.memmap(folder / name, kind, "r").reshape(samples.rows, samples.tokens, -1) for name, kind in kinds.items()}
    numbers = np.random.default_rng(0)

    def epoch() -> Iterator[Sample]:
        for rows in np.split(numbers.permutation(samples.rows), samples.rows // samples.batch):
            found = {name: torch.from_numpy(held[rows]) for name, held in maps.items()}
            beside = {name: found[name].squeeze(-1) for name in BESIDE}
            yield {**beside, "hidden": found["hidden"].view(torch.bfloat16)}

    return epoch


@dataclass(frozen=True)
class Layout:
    """How samples are stored and delivered.

    Attributes:
        write: into an empty folder.
        passes: what gives its epochs.
        module: that it needs.
        package: that has the module.
    """

    write: Callable[[Path, Samples], None]
    passes: Callable[[Path, Samples], Epoch]
    module: str = ""
    package: str = ""


OTHERS = {
    "WebDataset, .npy members": Layout(partial(write_webdataset, kind="npy"), partial(webdataset, kind="npy")),
    "WebDataset, .pth members": Layout(partial(write_webdataset, kind="pth"), partial(webdataset, kind="pth")),
    "MosaicML streaming": Layout(write_mds, mds, "streaming", "mosaicml-streaming"),
    "LitData": Layout(write_litdata, litdata, "litdata", "litdata"),
    "np.memmap, nothing checked": Layout(write_memmap, memmap),
}


def _numpy(sample: Sample) -> dict[str, np.ndarray]:
    """Fields as numpy has them."""
    return {name: (value.view(torch.int16) if name == "hidden" else value).numpy() for name, value in sample.items()}


def _block(samples: Samples, rows: Tensor) -> dict[str, Tensor]:
    """A block of our shards."""
    beside = {name: rows.repeat_interleave(samples.tokens).to(kind) for name, kind in BESIDE.items()}
    cuts = torch.arange(len(rows) + 1) * samples.tokens
    return {**beside, "hidden": samples.pool[rows % len(samples.pool)].flatten(0, 1), "uid": rows, "cu_seqlens": cuts}


def _stacked(rows: list[tuple[Any, ...]]) -> Sample:
    """A batch of WebDataset's tuples."""
    return {name: _batch(list(values)) for name, values in zip((*BESIDE, "hidden"), zip(*rows, strict=True), strict=True)}


def _stacked_fields(rows: list[dict[str, Any]]) -> Sample:
    """A batch of samples with named fields."""
    return {name: _batch([row[name] for row in rows]) for name in (*BESIDE, "hidden")}


def _batch(values: list[Any]) -> Tensor:
    """One contiguous tensor."""
    stacked = torch.stack(values) if isinstance(values[0], Tensor) else torch.from_numpy(np.stack(values))
    return stacked.view(torch.bfloat16) if stacked.dtype == torch.int16 else stacked
