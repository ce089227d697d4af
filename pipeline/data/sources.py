"""Where hidden states come from: shards, or the frozen trunk run live, here or in another process. All give the same Batch:
training knows no difference.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from components.backbones.split import split_layer
from components.backbones.taps import below_split
from components.objective.nested import Masking, UnrolledPasses
from components.ranges import NonNegativeInt, PositiveInt, Range, Seed
from components.training.grid_symmetries import Augmentation
from pipeline.corpora.prepared import Prepared
from pipeline.data.batches import VALIDATION, CachedSource, LiveSource, Source, Sources
from pipeline.data.reader import ShardReader
from pipeline.data.remote import RemoteTrunk, addresses
from pipeline.data.shard_index import ShardIndex
from pipeline.data.state_query import DTYPES, StateQuery
from pipeline.data.streaming import StreamedSource
from pipeline.data.unrolled import Unrolled
from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone


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


def unrolled(split: str, *, backbone: Backbone, states: Sources, passes: UnrolledPasses = 2) -> Source:
    """Read nested mask draws together, so that training unrolls denoising passes; validation is of single passes.

    Args:
        split: "train" or "validation".
        backbone: the one that the states must be of.
        states: of single draws: ``cached``, ``live`` or ``remote``.
        passes: draws of a batch, as many as are nested.

    Raises:
        ConfigError: draws are not nested by as many.
    """
    source = states(split, backbone=backbone)
    return source if split == "validation" else Unrolled(source, passes)


def live(
    split: str,
    *,
    backbone: Backbone,
    prepared: str,
    masking: Masking,
    seed: Seed,
    tail_layers: NonNegativeInt,
    taps: Sequence[int] = (),
    draws: PositiveInt | None = None,
    dtype: Literal["fp32", "bf16"],
    runtime: Runtime,
    buckets: Sequence[PositiveInt] = (),
    augment: Augmentation | None = None,
) -> LiveSource:
    """States from the frozen trunk, run for every batch: never repeats a mask (``draws`` = None), costs the trunk each time."""
    examples = tokens(
        split, backbone=backbone, prepared=prepared, masking=masking, seed=seed, draws=draws, buckets=buckets, augment=augment
    )
    _enter(examples, backbone, tail_layers, taps)
    examples.trunk, examples.dtype = backbone.trunk.to(runtime.device), DTYPES[dtype]
    examples.autocast = runtime.autocast
    return examples


def remote(
    split: str,
    *,
    backbone: Backbone,
    prepared: str,
    masking: Masking,
    seed: Seed,
    tail_layers: NonNegativeInt,
    taps: Sequence[int] = (),
    draws: PositiveInt | None = None,
    dtype: Literal["fp32", "bf16"],
    runtime: Runtime,
    buckets: Sequence[PositiveInt] = (),
    augment: Augmentation | None = None,
) -> LiveSource:
    """The states of ``live`` from a trunk that ``python -m stages serve`` runs in another process; none is loaded here.

    ``runtime`` says how it computes them, on which kind of device included; SLOTLOOP_TRUNKS where.

    Raises:
        ConfigError: SLOTLOOP_TRUNKS names no address.
    """
    examples = tokens(
        split, backbone=backbone, prepared=prepared, masking=masking, seed=seed, draws=draws, buckets=buckets, augment=augment
    )
    _enter(examples, backbone, tail_layers, taps)
    query = StateQuery(
        backbone.digest, examples.layer, examples.taps, dtype, runtime.device.type, runtime.precision, runtime.threads
    )
    examples.remote = RemoteTrunk(addresses(), query, backbone.architecture["dim"] * (1 + len(examples.taps)))
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
    augment: Augmentation | None = None,
) -> LiveSource:
    """Token ids alone, for models that are trained from their first layer on.

    Args:
        split: "train" or "validation".
        backbone: the one that the model is over.
        prepared: folder that prepare wrote.
        masking: the forward process.
        seed: of masks and augmentation.
        draws: masks repeat after this many epochs; None = never.
        buckets: lengths that batches are padded to, ascending.
        augment: makes other examples of those of "train" in every epoch (``components.training.grid_symmetries``); None = none.

    Raises:
        DataError: the backbone was not made from the prepared data.
    """
    data = Prepared(prepared)
    backbone.check(data)
    stream = VALIDATION if split == "validation" else None
    return LiveSource(
        data.split(split), data.vocabulary, masking, seed, draws=draws, stream=stream, buckets=buckets, augment=augment,
        fingerprint=data.digest,
    )  # fmt: skip


def _enter(examples: LiveSource, backbone: Backbone, tail_layers: int, taps: Sequence[int]) -> None:
    """Say which layers' entering states come with the examples."""
    layers = backbone.architecture["layers"]
    try:
        examples.layer = split_layer(layers, tail_layers)
        examples.taps = below_split(taps, layers, examples.layer)
    except ValueError as error:
        raise ConfigError(f"sources.live, sources.remote: {error}") from None
