"""The index of a folder of shards, opened and checked before anything is believed.

Hashes tell whether it is what extract wrote. What was forged together with its hashes must still fit the files: no name leads out
of the folder, no number out of its file.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.data.shard_writer import FORMAT, INDEX, ROW_FIELDS, ROWS, SCALE, TAR_UNIT, TOKEN_FIELDS, damaged
from pipeline.errors import DataError
from pipeline.files import json_bytes, read_json

STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn}
EIGHT_BITS = ("int8", "float8_e4m3fn")
TAIL = 21 * TAR_UNIT  # at most: a tar ends with two units of zeros, and more up to a whole record
Fits = Callable[[Any], bool]


def _whole(least: int, below: int = 1 << 31) -> Fits:
    return lambda value: type(value) is int and least <= value < below


def _text(pattern: str) -> Fits:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


PLAN: dict[str, Fits] = {
    **dict.fromkeys(("dim", "draws"), _whole(1)), **dict.fromkeys(("layer", "mask_id", "pad_id"), _whole(0)),
    "sequence": _whole(1, 1 << 20),
    "backbone": _text(r"[0-9a-f]{64}"), "dtype": lambda value: value in list(STATES), "padded": lambda value: type(value) is bool,
    "shards": lambda value: isinstance(value, list) and value != [] and all(isinstance(shard, dict) for shard in value),
}  # fmt: skip
SHARD: dict[str, Fits] = {
    "file": _text(r"[\w-]+\.tar"), "split": _text(r"[\w-]+"), "sha256": _text(r"[0-9a-f]{64}"), "draw": _whole(0),
    "bytes": _whole(1, 1 << 48), "blocks": _whole(1), "rows": _whole(1),
}  # fmt: skip


def read_index(folder: Path) -> dict[str, Any]:
    """What extract wrote about itself.

    Raises:
        DataError: extraction never finished, or another version wrote it.
        ShardError: it is damaged, holds what extract never writes, or shards are missing or of another size.
    """
    path = folder / INDEX
    index = read_json(path, "extract")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        known = index.get("format") if isinstance(index, dict) else None
        raise DataError(f"{path} is of format {known!r:.40}, this version reads {FORMAT}; run dvc repro extract")
    content = {key: value for key, value in index.items() if key != "fingerprint"}
    whole = hashlib.sha256(json_bytes(content)).hexdigest() == index.get("fingerprint")
    if not whole or json_bytes(index) != path.read_bytes():
        raise damaged("it is not what was written", path)
    _check_entries(index, PLAN, path)
    scale = SCALE if index["dtype"] in EIGHT_BITS else {}
    if index.get("fields") != sorted({"hidden": "", **TOKEN_FIELDS, **ROW_FIELDS, **scale}):
        raise damaged(f"{index.get('fields')!r:.200} cannot be the fields of {index['dtype']} states", path, field="fields")
    for shard in index["shards"]:
        _check_entries(shard, SHARD, path)
        _check_file(folder / shard["file"], shard["bytes"])
    return index


def read_table(folder: Path, index: dict[str, Any]) -> tuple[dict[str, np.ndarray], Tensor | None]:
    """Columns with a line per block or row, and the scale of each channel of states in eight bits.

    Raises:
        ShardError: it is missing, damaged, or speaks of bytes that its shards do not have.
    """
    path = folder / ROWS
    if not path.is_file():
        raise damaged(f"{INDEX} speaks of it, it does not exist", path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != index.get("rows"):
        raise damaged("it is not what was written", path)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(f"no safetensors ({error})", path) from None
    channel = arrays.pop("channel", None)
    held = None if channel is None else (channel.dtype, channel.shape)
    if held != ((torch.float32, (index["dim"],)) if index["dtype"] in EIGHT_BITS else None):
        raise damaged(f"{held} does not fit {index['dtype']} states of {index['dim']}", path, field="channel")
    blocks, rows = (sum(shard[name] for shard in index["shards"]) for name in ("blocks", "rows"))
    wanted = {"block/fields": (blocks, len(index["fields"])), **dict.fromkeys(("row/uid", "row/length", "row/crc"), (rows,))}
    wanted |= dict.fromkeys(("block/offset", "block/bytes", "block/rows", "block/crc"), (blocks,))
    found = {name: tuple(value.shape) for name, value in arrays.items() if value.dtype == torch.int64}
    if found != wanted or len(arrays) != len(wanted):
        raise damaged(f"its columns do not fit {blocks} blocks and {rows} rows", path)
    table = {name: value.numpy() for name, value in arrays.items()}
    _check_places(index, table, path)
    return table, channel


def _check_entries(held: dict[str, Any], wanted: dict[str, Fits], path: Path) -> None:
    for name, fits in wanted.items():
        if not fits(held.get(name)):
            raise damaged(f"{held.get(name)!r:.80} cannot be what extract wrote", path, field=name)


def _check_file(path: Path, size: int) -> None:
    """What is cheap to see at once."""
    if not path.is_file():
        raise damaged("the index lists it, it does not exist", path)
    if (found := path.stat().st_size) != size:
        raise damaged(f"{found} bytes, the index says {size}", path)


def _check_places(index: dict[str, Any], table: dict[str, np.ndarray], path: Path) -> None:
    """Blocks fill their shards end to end, and rows their blocks. No sum of numbers that were not looked at: it may overflow."""

    def fits(whether: bool | np.bool_, what: str) -> None:
        if not whether:
            raise damaged(f"{what} do not fit the shards", path, field=what)

    shards, sequence = index["shards"], index["sequence"]
    last = np.cumsum([shard["blocks"] for shard in shards]) - 1
    first = np.concatenate([[0], last[:-1] + 1])
    whole = np.repeat([shard["bytes"] for shard in shards], [shard["blocks"] for shard in shards])
    offset, size, rows, length = (table[name] for name in ("block/offset", "block/bytes", "block/rows", "row/length"))
    fits(((size > TAR_UNIT) & (size <= whole) & (size % TAR_UNIT == 0)).all(), "block/bytes")
    fits(((offset >= 0) & (offset <= whole - size)).all() and (offset[first] == 0).all(), "block/offset")
    follows = offset[1:] == (offset + size)[:-1]
    follows[last[:-1]] = True
    tails = (whole - offset - size)[last]
    fits(follows.all() and ((tails >= 2 * TAR_UNIT) & (tails <= TAIL)).all(), "block/offset")
    fits(((rows > 0) & (rows <= len(length))).all(), "block/rows")
    fits((np.add.reduceat(rows, first) == [shard["rows"] for shard in shards]).all(), "block/rows")
    fits(((length > 0) & (length <= sequence)).all() and (index["padded"] or (length == sequence).all()), "row/length")
    tokens = np.add.reduceat(length, np.cumsum(rows) - rows)
    width = index["dim"] * STATES[index["dtype"]].itemsize
    fits((tokens <= size // width).all(), "row/length")
    begin = table["block/fields"][:, index["fields"].index("hidden")]
    fits(((begin >= offset + TAR_UNIT) & (begin <= offset + size - tokens * width)).all(), "block/fields")
