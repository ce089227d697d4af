"""Where hidden states come from: shards, or the frozen trunk run live. Both give the same Batch: training knows no difference."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch

from components.backbones.split import split_layer
from components.ranges import NonNegativeInt, PositiveInt, Range, Seed
from pipeline.corpora.prepared import Prepared
from pipeline.data.batches import VALIDATION, CachedSource, LiveSource, Masking
from pipeline.data.reader import ShardReader
from pipeline.data.shard_index import ShardIndex
from pipeline.data.streaming import StreamedSource
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cached(
    split: str,
    *,
    backbone: Backbone,
    shards: str,
    buckets: Sequence[PositiveInt] = (),
    near: Annotated[int, Range(ge=0, lt=2**31)] = 0,
) -> CachedSource:
    """Read the states that extract has stored.

    Args:
        split: "train" or "validation".
        backbone: the one that they must be of.
        shards: their folder.
        buckets: lengths that batches are padded to, ascending; the whole sequence is always one.
        near: shuffle among this many blocks at a time, for disks that are slow to seek; 0 = among all rows.

    Raises:
        DataError: the shards were made with another backbone, or are damaged.
    """
    reader = ShardReader(shards)
    backbone.check_over(reader.table.inputs, reader.folder, "extract")
    return CachedSource(reader, split, buckets, near)


def streamed(
    split: str, *, backbone: Backbone, shards: str, near: Annotated[int, Range(ge=1, lt=2**31)] = 16, urls: Sequence[str] = ()
) -> StreamedSource:
    """States that extract stored, read as a stream: for disks and networks that are slow to seek.

    Args:
        split: "train" or "validation".
        backbone: the one that they must be of.
        shards: folder of their index.
        near: blocks that are held at a time, among which rows are shuffled; 1 at least.
        urls: where the tars lie if not in ``shards``: paths, file://, http:// or https://, in any order; files are known by their
            names.

    Raises:
        ConfigError: a URL is of another kind.
        DataError: the shards were made with another backbone, are damaged, or have no URL.
    """
    table = ShardIndex(shards)
    backbone.check_over(table.inputs, table.folder, "extract")
    return StreamedSource(table, split, near, urls)


def live(
    split: str,
    *,
    backbone: Backbone,
    prepared: str,
    masking: Masking,
    seed: Seed,
    tail_layers: NonNegativeInt,
    draws: PositiveInt | None = None,
    dtype: Literal["fp32", "bf16"],
    runtime: Runtime,
    buckets: Sequence[PositiveInt] = (),
) -> LiveSource:
    """States from the frozen trunk, run for every batch: never repeats a mask (``draws`` = None), costs the trunk each time."""
    examples = tokens(split, backbone=backbone, prepared=prepared, masking=masking, seed=seed, draws=draws, buckets=buckets)
    examples.layer = split_layer(backbone.architecture["layers"], tail_layers)
    examples.trunk, examples.dtype = backbone.trunk.to(runtime.device), DTYPES[dtype]
    examples.autocast = runtime.autocast
    return examples


def tokens(
    split: str,
    *,
    backbone: Backbone,
    prepared: str,
    masking: Masking,
    seed: Seed,
    draws: PositiveInt | None = None,
    buckets: Sequence[PositiveInt] = (),
) -> LiveSource:
    """Token ids alone, for models that are trained from their first layer on.

    Raises:
        DataError: the backbone was not made from the prepared data.
    """
    data = Prepared(prepared)
    backbone.check(data)
    stream = VALIDATION if split == "validation" else None
    return LiveSource(
        data.split(split), data.vocabulary, masking, seed, draws=draws, stream=stream, buckets=buckets, fingerprint=data.digest
    )
