"""Run the frozen trunk once over every example and mask draw, and write the states at the split as shards.

A shard is a pure function of its place in the plan: processes write disjoint shards, a batch never crosses one, and what was killed
goes on with the first shard that is not committed. Shards are made in ``.scratch`` and linked to the output when all are there, the
index last. With a store they go there one by one as they are made, and the output holds their index alone.
"""

import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.backbones.taps import tapped_trunk
from components.batch import Batch
from components.objective.nested import Masking, passes_of
from components.quantisation import DTYPES as EIGHT_BITS
from components.quantisation import calibrated, quantised, relative_error
from pipeline.corpora.prepared import Prepared
from pipeline.data.batches import VALIDATION, LiveSource
from pipeline.data.shard_writer import INDEX, METRICS, ROWS, Block, committed, free_bytes, write_index, write_shard
from pipeline.data.store import Store
from pipeline.errors import ConfigError, DataError
from pipeline.files import json_bytes, sha256, write_json
from pipeline.machine import snapshots
from pipeline.machine.distributed import barrier, rank, world
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.progress import Progress

MOST_ROWS = 256  # of a block
BESIDE = 13  # bytes of a token's other fields: ids, targets, weight, mask
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, **EIGHT_BITS}


def token_bytes(dim: int, dtype: str, taps: int = 0) -> int:
    """Bytes that one token takes: its states of width ``dim`` at the split and at every tap, their scale, and its other fields."""
    return (1 + taps) * dim * STORED[dtype].itemsize + BESIDE + (4 if dtype in EIGHT_BITS else 0)


@dataclass(frozen=True)
class Part:
    """A shard of the plan: rows of one draw, in stored order."""

    file: str
    split: str
    draw: int
    rows: Tensor


@dataclass
class Extraction:
    """What decides the content of every shard.

    Attributes:
        prepared: the corpus.
        backbone: whose trunk runs.
        runtime: where it computes.
        masking: the forward process.
        layer: the split.
        taps: layers below it whose entering states are stored too.
        draws: mask draws of every training example.
        batch_size: sequences that run through the trunk together.
        buckets: lengths that batches are padded to.
        dtype: of the stored states ("fp32", "bf16", "int8", "fp8").
        seed: of the masks.
        shard_bytes, block_bytes: sizes at most, reckoned with rows of full length.
    """

    prepared: Prepared
    backbone: Backbone
    runtime: Runtime
    masking: Masking
    layer: int
    taps: Sequence[int]
    draws: int
    batch_size: int
    buckets: Sequence[int]
    dtype: str
    seed: int
    shard_bytes: int
    block_bytes: int

    def __post_init__(self) -> None:
        self.sources = {name: self._source(name) for name in ("train", "validation")}
        self.trunk = self.backbone.model().to(self.runtime.device).eval().requires_grad_(False)
        self.width = token_bytes(int(self.backbone.architecture["dim"]), self.dtype, len(self.taps))
        self.channel = self._calibration() if self.dtype in EIGHT_BITS else None

    def parts(self) -> list[Part]:
        """Every shard, in order: rows of one padded length together, so that short ones run through the trunk without padding."""
        per_shard = self.shard_bytes // (self.width * self.prepared.vocabulary.sequence)
        per_shard = max(per_shard - per_shard % self.batch_size, self.batch_size)
        plan = [("train", draw) for draw in range(self.draws)] + [("validation", 0)]
        parts = []
        for split, draw in plan:
            for number, rows in enumerate(self.sources[split].padded.argsort(stable=True).split(per_shard)):
                parts.append(Part(f"{split}-{draw:02d}-{number:05d}.tar", split, draw, rows))
        return parts

    def plan(self) -> dict[str, Any]:
        """What the index says of itself."""
        vocabulary = self.prepared.vocabulary
        return {
            "backbone": self.backbone.digest, "prepared": self.prepared.digest, "layer": self.layer,
            "dim": self.backbone.architecture["dim"], **({"taps": list(self.taps)} if self.taps else {}),
            "mask_id": vocabulary.mask_id, "pad_id": vocabulary.pad_id, "sequence": vocabulary.sequence,
            "padded": any(source.split.valid is not None for source in self.sources.values()),
            "draws": self.draws, "dtype": str(STORED[self.dtype]).removeprefix("torch."),
            "batch_size": self.batch_size, "buckets": list(self.buckets), "seed": self.seed,
            **({"nested": passes_of(self.masking)} if passes_of(self.masking) > 1 else {}),
        }  # fmt: skip

    def identity(self) -> str:
        """Hash of all that decides the shards, as far as it can be told; code and masking are the scratch key's."""
        content = {**self.plan(), "bytes": [self.shard_bytes, self.block_bytes]}
        return hashlib.sha256(json_bytes(content)).hexdigest()

    def tokens(self) -> int:
        """Count the tokens to be stored, over all draws."""
        train, validation = (int(self.sources[name].split.lengths().sum()) for name in ("train", "validation"))
        return train * self.draws + validation

    def blocks(self, part: Part, bar: Progress, errors: list[Tensor]) -> Iterator[Block]:
        """The blocks of a shard; relative errors of states in eight bits are added to ``errors``."""
        per_block = min(MOST_ROWS, max(1, self.block_bytes // (self.width * self.prepared.vocabulary.sequence)))
        pending: Block = {}
        for rows in part.rows.split(self.batch_size):
            fresh = self._rows(part, rows, errors)
            bar.advance(len(fresh["tokens"]))
            pending = {name: torch.cat([pending[name], fresh[name]]) for name in fresh} if pending else fresh
            while len(pending["uid"]) >= per_block:
                block, pending = _cut(pending, per_block)
                yield block
        if len(pending["uid"]):
            yield _cut(pending, len(pending["uid"]))[0]

    def _source(self, name: str) -> LiveSource:
        stream = VALIDATION if name == "validation" else None
        split = self.prepared.split(name)
        return LiveSource(split, self.prepared.vocabulary, self.masking, self.seed, stream=stream, buckets=self.buckets)

    @torch.no_grad()
    def _states(self, source: LiveSource, rows: Tensor, draw: int) -> tuple[Batch, Tensor]:
        batch = source.batch(rows, torch.full_like(rows, draw))
        moved = batch.to(self.runtime.device)
        with self.runtime.autocast():
            return batch, tapped_trunk(self.trunk, moved.tokens, moved.attention, self.layer, self.taps)

    def _calibration(self) -> Tensor:
        """Channel sizes over the first batch, the same in every process."""
        source = self.sources["train"]
        batch, hidden = self._states(source, torch.arange(min(self.batch_size, len(source))), 0)
        token_states = hidden.flatten(0, 1) if batch.attention is None else hidden[batch.attention.to(hidden.device)]
        return calibrated(token_states, self.dtype)  # type: ignore[arg-type]

    def _rows(self, part: Part, rows: Tensor, errors: list[Tensor]) -> Block:
        """One batch through the trunk: its tokens without padding, uid and length of its rows."""
        source = self.sources[part.split]
        batch, hidden = self._states(source, rows, part.draw)
        lengths = source.split.take(rows).lengths()
        is_token = torch.arange(hidden.shape[1]) < lengths[:, None]
        states = hidden[is_token.to(hidden.device)]
        uid = source.split.uid
        assert uid is not None
        fields: Block = {
            "tokens": batch.tokens[is_token].int(), "targets": batch.targets[is_token].int(), "masked": batch.masked[is_token],
            "weights": batch.weights[is_token], "uid": uid[rows], "length": lengths,
        }  # fmt: skip
        if self.channel is None:
            fields["hidden"] = states.to(STORED[self.dtype]).cpu()
        else:
            stored, scale = quantised(states, self.channel, self.dtype)  # type: ignore[arg-type]
            errors.append(relative_error(states, stored, scale, self.channel).double().cpu())
            fields |= {"hidden": stored.cpu(), "scale": scale.cpu()}
        return fields


def extract(extraction: Extraction, out: Path, store: Store | None = None) -> None:
    """Write every shard, ``metrics.json`` and the index into ``out``.

    Args:
        extraction: what to store.
        out: folder of the index, and of the shards if there is no store.
        store: where shards go instead. Others may fill it at the same time: each makes what is not committed yet.

    Raises:
        ConfigError: there is not enough room on the disk.
        DataError: states are not finite, data and backbone do not belong together, or the store refuses.
    """
    building = snapshots.folder("shards") or out
    parts, identity = extraction.parts(), extraction.identity()
    if store is not None and rank() == 0:
        store.begin(extraction.plan())
    done = _committed(parts, identity, building, store)
    if store is None:
        _check_room(extraction, building, sum(record["bytes"] for record in done.values()))
    mine = [part for part in parts[rank() :: world()] if part.file not in done]
    if store is not None:
        random.Random().shuffle(mine)  # so that machines that know nothing of each other seldom make the same one
    reused = f", {len(done)} of them are there already" if done else ""
    with Progress("extract", sum(_tokens(extraction, part) for part in mine), "token") as bar:
        bar.line(f"{extraction.tokens():,} tokens in {len(parts)} shards{reused}")
        for part in mine:
            if store is not None and store.committed([part.file], identity):
                bar.advance(_tokens(extraction, part))
                bar.line(f"{part.file}: made by another process meanwhile")
                continue
            errors: list[Tensor] = []
            blocks = extraction.blocks(part, bar, errors)
            record = write_shard(building / part.file, blocks, identity, notes=partial(_error, errors))
            if store is not None:
                store.put(building / part.file, record)
            bar.line(f"{part.file}: {len(part.rows)} examples | {bar.rate()}")
    barrier()
    if rank() == 0:
        _finish(extraction, parts, building, out, identity, store)


def _committed(parts: Sequence[Part], identity: str, building: Path, store: Store | None) -> dict[str, dict[str, Any]]:
    """Records of the shards that are finished, by their names in the plan."""
    if store is not None:
        return store.committed([part.file for part in parts], identity)
    return {part.file: record for part in parts if (record := committed(building / part.file, identity))}


def _tokens(extraction: Extraction, part: Part) -> int:
    return int(extraction.sources[part.split].split.take(part.rows).lengths().sum())


def _check_room(extraction: Extraction, folder: Path, there: int) -> None:
    """Refuse what does not fit on the disk before anything is computed."""
    needed, free = extraction.tokens() * extraction.width - there, free_bytes(folder)
    print(f"extract: {needed / 1e9:.2f} GB to write, {free / 1e9:.1f} GB free", flush=True)
    if needed > free:
        raise ConfigError(
            f"extract needs {needed / 1e9:.1f} GB in {folder.absolute()} and {free / 1e9:.1f} GB are free; make room, set "
            "SLOTLOOP_SCRATCH to a larger disk, lower extract.run.draws, store eight bits (extract.run.dtype: int8), or run the "
            "trunk live (states: '@sources.live')"
        )


def _finish(extraction: Extraction, parts: list[Part], building: Path, out: Path, identity: str, store: Store | None) -> None:
    """The index, the metrics, and everything to its place; ``index.json`` last."""
    done = _committed(parts, identity, building, store)
    if missing := [part.file for part in parts if part.file not in done]:
        raise DataError(f"extract: {missing[0]} is gone ({len(missing)} of {len(parts)} shards are missing); run it again")
    records = [{**done[part.file], "split": part.split, "draw": part.draw} for part in parts]
    for leftover in building.glob("*.tmp"):
        leftover.unlink()
    stored = sum(record["bytes"] for record in records)
    metrics: dict[str, Any] = {"bytes": stored, "rows": sum(len(r["uid"]) for r in records), "tokens": extraction.tokens()}
    if extraction.channel is not None:
        errors, tokens = (sum(record[name] for record in records) for name in ("error", "tokens"))
        metrics |= {"relative_error": errors / tokens, "relative_error_largest": max(r["error_largest"] for r in records)}
    write_json(building / METRICS, metrics)
    plan = {**extraction.plan(), "metrics": sha256(building / METRICS), **({"store": store.url} if store else {})}
    write_index(building, plan, records, extraction.channel)
    files = [] if store else [part.file for part in parts]
    if building == out:
        for part in parts:
            (out / part.file).with_suffix(".json").unlink(missing_ok=True)
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in (*files, ROWS, METRICS, INDEX):
        _linked(building / name, out / name)


def _linked(file: Path, target: Path) -> None:
    """The same file at another place, so that a kill loses neither; a copy where that lies on another disk."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _error(errors: list[Tensor]) -> dict[str, float]:
    """Relative errors of a shard's tokens, as its record holds them; nothing for states that are stored as they are."""
    if not errors:
        return {}
    all_errors = torch.cat(errors)
    return {"error": float(all_errors.sum()), "error_largest": float(all_errors.max()), "tokens": len(all_errors)}


def _cut(pending: Block, rows: int) -> tuple[Block, Block]:
    """The first ``rows`` rows as a block, and the rest."""
    lengths = pending["length"]
    tokens = int(lengths[:rows].sum())
    at = {name: rows if name in ("uid", "length") else tokens for name in pending}
    block = {name: pending[name][: at[name]] for name in pending if name != "length"}
    cuts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths[:rows].cumsum(0)])
    return {**block, "cu_seqlens": cuts}, {name: pending[name][at[name] :] for name in pending}
