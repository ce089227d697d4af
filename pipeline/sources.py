"""Where hidden states come from: shards, or the frozen trunk run live. Both give the same Batch: training knows no difference."""

from typing import Literal

import torch

from components.split import split_layer
from pipeline.backbones import Backbone
from pipeline.data import VALIDATION, Cached, Examples, Masking
from pipeline.prepared import Prepared
from pipeline.runtime import Runtime
from pipeline.shards import Shards

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cached(split: str, *, backbone: Backbone, shards: str, window: int) -> Cached:
    """States that extract stored.

    Raises:
        DataError: the shards were made with another backbone, or are damaged.
    """
    opened = Shards(shards)
    backbone.check_fingerprint(opened.index["backbone"], opened.folder, "extract")
    return Cached(opened, split, window)


def live(
    split: str,
    *,
    backbone: Backbone,
    prepared: str,
    masking: Masking,
    seed: int,
    tail_layers: int,
    draws: int | None = None,
    dtype: Literal["fp32", "bf16"],
    runtime: Runtime,
) -> Examples:
    """States from the frozen trunk, run for every batch: never repeats a mask (``draws`` = None), costs the trunk each time."""
    examples = tokens(split, backbone=backbone, prepared=prepared, masking=masking, seed=seed, draws=draws)
    examples.layer = split_layer(backbone.architecture["layers"], tail_layers)
    examples.trunk, examples.dtype = backbone.model().to(runtime.device).eval().requires_grad_(False), DTYPES[dtype]
    examples.autocast = runtime.autocast
    return examples


def tokens(split: str, *, backbone: Backbone, prepared: str, masking: Masking, seed: int, draws: int | None = None) -> Examples:
    """Token ids alone, for models that are trained from their first layer on.

    Raises:
        DataError: the prepared data speaks of other token ids than the backbone.
    """
    opened = Prepared(prepared)
    backbone.check(opened.vocabulary, opened.folder)
    stream = VALIDATION if split == "validation" else None
    return Examples(opened.split(split), opened.vocabulary, masking, seed, draws=draws, stream=stream)
