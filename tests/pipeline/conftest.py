"""Fixtures of the pipeline's tests: a machine to compute on, and handmade data small enough to read."""

import hashlib
import zlib

import pytest
import torch
from safetensors.torch import load_file, save

from components.objective.masking import exact_count
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.reader import ShardReader
from pipeline.data.shard_writer import TAR_UNIT, frame_crc, write_index, write_shard
from pipeline.files import json_bytes, read_json, sha256
from pipeline.machine.runtime import Runtime


@pytest.fixture
def runtime():
    """One CPU thread and deterministic algorithms, for the length of a test."""
    runtime = Runtime(threads=1)
    with runtime.in_force():
        yield runtime


@pytest.fixture
def vocabulary():
    return Vocabulary(size=102, mask_id=100, pad_id=101, sequence=6, rendering="text")


@pytest.fixture
def rows():
    """``rows(n)``: examples whose every token is the row's number, so that a batch shows where it came from."""

    def rows(n):
        response = torch.zeros(n, 6, dtype=torch.bool)
        response[:, 2:] = True
        tokens = torch.arange(n, dtype=torch.int32)[:, None].expand(n, 6)
        return Split(tokens=tokens, response=response, group=torch.arange(n), uid=torch.arange(n))

    return rows


@pytest.fixture
def shards_of(tmp_path, rows):
    """``shards_of(n)``: a folder of shards over ``rows(n)``, blocks of 4 rows, 12 rows a file; states hold 1000 draw + row."""

    def make(n, draws=2):
        return ShardReader(write_shards(tmp_path / f"shards_{n}_{draws}", rows(n), draws))

    return make


def write_shards(folder, split, draws=2, channel=None, **plan):
    """Shards as extraction writes them: every draw of ``split`` as train, and once more as validation."""
    records = []
    for name, draw in [("train", d) for d in range(draws)] + [("validation", 0)]:
        for number, rows in enumerate(torch.arange(len(split)).split(12)):
            blocks = [block(split.take(chosen), 1000.0 * draw) for chosen in rows.split(4)]
            record = write_shard(folder / f"{name}-{draw:02d}-{number:05d}.tar", blocks, "i" * 64)
            records.append({**record, "split": name, "draw": draw})
    sizes = {"layer": 1, "dim": 2, "mask_id": 100, "pad_id": 101, "sequence": 6}
    kind = {"backbone": "b" * 64, "prepared": "c" * 64, "draws": draws, "dtype": "float32", "padded": split.valid is not None}
    write_index(folder, {**sizes, **kind, **plan}, records, channel)
    return folder


def put(path, content):
    """Write a file anew: to write over one takes a hundred times as long, for ext4 then waits for the disk."""
    path.unlink()
    path.write_bytes(content)


def forge(folder, in_index=lambda index: None, in_table=lambda table: None):
    """Change what the index and its table hold, and make all hashes agree again: what an accident never does."""
    table = load_file(folder / "index.safetensors")
    in_table(table)
    put(folder / "index.safetensors", save({name: value.contiguous() for name, value in table.items()}))
    index = read_json(folder / "index.json", "extract")
    index["rows"] = sha256(folder / "index.safetensors")
    in_index(index)
    content = json_bytes({key: value for key, value in index.items() if key != "fingerprint"})
    index["fingerprint"] = hashlib.sha256(content).hexdigest()
    put(folder / "index.json", json_bytes(index))


def forge_block(folder, number, change, in_table=lambda table: None):
    """Replace a block, of all blocks the given one, by as many other bytes, and make all checksums agree again."""
    index, table = read_json(folder / "index.json", "extract"), load_file(folder / "index.safetensors")
    files = [shard["file"] for shard in index["shards"] for _ in range(shard["blocks"])]
    begin, size = int(table["block/offset"][number]), int(table["block/bytes"][number])
    content = (folder / files[number]).read_bytes()
    forged = change(content[begin : begin + size])
    assert len(forged) == size
    put(folder / files[number], content[:begin] + forged + content[begin + size :])
    states = int(table["block/fields"][number, index["fields"].index("hidden")]) - begin - TAR_UNIT
    lengths = table["row/length"].split(table["block/rows"].tolist())[number]
    end = states + int(lengths.sum()) * index["dim"] * getattr(torch, index["dtype"]).itemsize

    def sealed(table):
        table["block/crc"][number] = zlib.crc32(forged[:TAR_UNIT], frame_crc(forged[TAR_UNIT:], states, end))
        in_table(table)

    forge(folder, in_table=sealed)


def block(split, offset=0.0):
    """One block of states: what extraction writes for some rows. States hold the row's first token + ``offset``."""
    noise = torch.rand(len(split), 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masked, weights = exact_count(split.response, noise)
    kept = torch.ones_like(masked) if split.valid is None else split.valid
    return {
        "uid": split.uid,
        "cu_seqlens": torch.tensor([0, *kept.sum(1).tolist()]).cumsum(0),
        "tokens": torch.where(masked, 100, split.tokens)[kept].int(),
        "targets": split.tokens[kept].int(),
        "masked": masked[kept],
        "weights": weights[kept].float(),
        "hidden": (split.tokens.float()[..., None].expand(len(split), 6, 2) + offset)[kept],
    }
