"""Run the frozen trunk once over every example and mask draw, and write the states at the split as shards."""

from collections.abc import Iterator
from pathlib import Path

import torch

from components.tiny_lm import TinyLM
from pipeline.backbones import Backbone
from pipeline.data import VALIDATION, Examples, Masking
from pipeline.prepared import Prepared
from pipeline.progress import Progress
from pipeline.runtime import Runtime
from pipeline.shards import Block, write_index, write_shard


def extract(
    prepared: Prepared,
    backbone: Backbone,
    out: Path,
    runtime: Runtime,
    *,
    masking: Masking,
    layer: int,
    draws: int,
    batch_size: int,
    shard_examples: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Write ``train`` (``draws`` draws) and ``validation`` (one) as shards and their index.

    The batch plan (order, batch size) is part of the bits and so of the index.

    Raises:
        DataError: states are not finite, or data and backbone do not belong together.
    """
    backbone.check(prepared.vocabulary, prepared.folder)
    trunk = backbone.model().to(runtime.device).eval().requires_grad_(False)
    plan = [("train", draw, draw) for draw in range(draws)] + [("validation", 0, VALIDATION)]
    splits = {name: prepared.split(name) for name in ("train", "validation")}
    entries = []
    with Progress("extract", sum(len(splits[name]) for name, _, _ in plan), "rows") as bar:
        for name, draw, stream in plan:
            split = splits[name]
            source = Examples(split, prepared.vocabulary, masking, seed, stream=stream)
            for number, first in enumerate(range(0, len(split), shard_examples)):
                last = min(first + shard_examples, len(split))
                blocks = _blocks(source, trunk, runtime, layer, dtype, range(first, last), batch_size, bar)
                entry = write_shard(out / f"{name}-{draw:02d}-{number:05d}.tar", blocks)
                entries.append({**entry, "split": name, "draw": draw})
            bar.line(f"{name}: draw {draw + 1} of {draws if name == 'train' else 1}, {len(split)} examples")
    index = {
        "backbone": backbone.fingerprint,
        "layer": layer,
        "dim": backbone.architecture["dim"],
        "mask_id": prepared.vocabulary.mask_id,
        "draws": draws,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "seed": seed,
        "shards": entries,
    }
    write_index(out, index)


@torch.no_grad()
def _blocks(
    source: Examples,
    trunk: TinyLM,
    runtime: Runtime,
    layer: int,
    dtype: torch.dtype,
    rows: range,
    batch_size: int,
    bar: Progress,
) -> Iterator[Block]:
    """One block per batch."""
    for first in range(rows.start, rows.stop, batch_size):
        chosen = torch.arange(first, min(first + batch_size, rows.stop))
        batch = source.batch(chosen, epoch=0)
        moved = batch.to(runtime.device)
        with runtime.autocast():
            hidden = trunk.trunk(moved.tokens, moved.attention, layer)
        examples = source.split.take(chosen)
        assert examples.uid is not None
        block = {
            "uid": examples.uid,
            "tokens": examples.tokens,
            "masked": batch.masked,
            "weights": batch.weights,
            "hidden": hidden.to(dtype).cpu(),
        }
        bar.advance(len(chosen))
        yield block if examples.valid is None else {**block, "valid": examples.valid}
