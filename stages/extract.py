"""extract: runs the frozen trunk once per mask draw and stores the states at the split."""

from pathlib import Path
from typing import Literal

from components.split import split_layer
from pipeline import extraction
from pipeline.backbones import Backbone
from pipeline.data import Masking
from pipeline.errors import ConfigError
from pipeline.prepared import Prepared
from pipeline.runtime import Runtime
from pipeline.sources import DTYPES


def run(
    *,
    out: str,
    prepared: str,
    backbone: str,
    masking: Masking,
    tail_layers: int,
    draws: int,
    dtype: Literal["fp32", "bf16"],
    batch_size: int,
    shard_examples: int,
    seed: int,
    runtime: Runtime,
) -> None:
    """Write ``out`` with WebDataset tars and their index.

    Args:
        out: folder of the shards.
        prepared: folder that prepare wrote.
        backbone: folder of the frozen backbone.
        masking: the forward process.
        tail_layers: layers above the split: the most that any later phase trains.
        draws: mask draws stored of every training example.
        dtype: of the stored states; fp32 keeps cached and live states equal bit for bit.
        batch_size: sequences that run through the trunk together; one block of a shard.
        shard_examples: examples of one tar.
        seed: of the masks.
        runtime: where it computes.
    """
    frozen = Backbone(backbone)
    try:
        layer = split_layer(frozen.architecture["layers"], tail_layers)
    except ValueError as error:
        raise ConfigError(f"extract: {error}; lower extract.run.tail_layers") from None
    extraction.extract(
        Prepared(prepared), frozen, Path(out), runtime,
        masking=masking, layer=layer, draws=draws, batch_size=batch_size, shard_examples=shard_examples,
        dtype=DTYPES[dtype], seed=seed,
    )  # fmt: skip
