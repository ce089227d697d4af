"""extract: runs the frozen trunk once per mask draw and stores the states at the split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from components.backbones.split import split_layer
from components.backbones.taps import below_split
from components.objective.nested import Masking, check_draws
from components.ranges import NonNegativeInt, PositiveInt, Seed
from pipeline.corpora.prepared import Prepared
from pipeline.data.extraction import Extraction, extract
from pipeline.data.reader import verify as verify_shards
from pipeline.data.store import store_of_work
from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone


def run(
    *,
    out: str,
    prepared: str,
    backbone: str,
    masking: Masking,
    tail_layers: NonNegativeInt,
    taps: Sequence[int],
    draws: PositiveInt,
    dtype: Literal["fp32", "bf16", "int8", "fp8"],
    batch_size: PositiveInt,
    buckets: Sequence[PositiveInt],
    shard_bytes: PositiveInt,
    block_bytes: PositiveInt,
    seed: Seed,
    runtime: Runtime,
    store: str,
    verify: bool = False,
) -> None:
    """Write ``out`` with WebDataset tars and their index.

    Args:
        out: folder of the shards.
        prepared: folder that prepare wrote.
        backbone: folder of the frozen backbone.
        masking: the forward process.
        tail_layers: layers above the split: the most that any later phase trains.
        taps: layers below the split whose entering states are stored beside, for a refiner that reads them
            (``components.refiners.tapped``); negative ones count from the last layer. Each takes as much disk as the split.
        draws: mask draws stored of every training example.
        dtype: of the stored states; the backbone's own keeps cached and live states equal bit for bit, int8 and fp8 take half the
            space of bf16 (the measured error is in ``metrics.json``).
        batch_size: sequences that run through the trunk together.
        buckets: lengths that batches are padded to, ascending; the whole sequence is always one.
        shard_bytes: size of a tar at most (at least one batch).
        block_bytes: size of a tar's member at most (at least one example, at most 256).
        seed: of the masks.
        runtime: where it computes.
        store: URL of a folder that shards go to instead, such as 's3://bucket/states' or 'file:///mnt/states' (whatever fsspec
            opens); ``out`` then holds their index, and ``sources.streamed`` reads them. "" = none.
        verify: check every byte of ``out`` instead (``--verify``).
    """
    runtime.enter_process()
    if verify:
        print(f"extract: {verify_shards(out):,} bytes in {out} are those that were written")
        return
    frozen, data = Backbone(backbone), Prepared(prepared)
    frozen.check(data)
    try:
        layer = split_layer(layers := frozen.architecture["layers"], tail_layers)
    except ValueError as error:
        raise ConfigError(f"extract: {error}; lower extract.run.tail_layers") from None
    try:
        check_draws(masking, draws)
        entered = below_split(taps, layers, layer)
    except ValueError as error:
        raise ConfigError(f"extract: {error}") from None
    plan = Extraction(
        data, frozen, runtime, masking, layer, entered, draws, batch_size, buckets, dtype, seed, shard_bytes, block_bytes
    )
    extract(plan, Path(out), store_of_work(store, plan.identity()))
