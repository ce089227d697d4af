"""The index of a folder of shards: what is stored where, and whether bytes are those that were written.

It is believed when its hashes agree. No name that it holds leads out of the folder; numbers are held against the files where bytes
are read.
"""

import hashlib
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.data.shard_writer import FORMAT, INDEX, ROW_FIELDS, ROWS, SCALE, TAR_UNIT, TOKEN_FIELDS, ShardError, damaged, layout
from pipeline.data.store import Store
from pipeline.errors import DataError
from pipeline.files import json_bytes, read_json

STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn}
EIGHT_BITS = ("int8", "float8_e4m3fn")
NAMES = {"float32": "F32", "bfloat16": "BF16", "int8": "I8", "float8_e4m3fn": "F8_E4M3"}
NUMPY = {"I32": "<i4", "F32": "<f4", "BOOL": "?"}
Fits = Callable[[Any], bool]


def _whole(least: int, below: int = 1 << 31) -> Fits:
    return lambda value: type(value) is int and least <= value < below


def _text(pattern: str) -> Fits:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


PLAN: dict[str, Fits] = {
    **dict.fromkeys(("dim", "draws"), _whole(1)), **dict.fromkeys(("layer", "mask_id", "pad_id"), _whole(0)),
    "sequence": _whole(1, 1 << 20),
    **dict.fromkeys(("backbone", "prepared"), _text(r"[0-9a-f]{64}")),
    "dtype": lambda value: value in list(STATES), "padded": lambda value: type(value) is bool,
    "store": lambda value: value is None or (isinstance(value, str) and value != ""),
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
        ShardError: it is damaged, or holds what extract never writes.
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
    taps = index.get("taps", [])
    if not isinstance(taps, list) or not all(map(_whole(0, index["layer"]), taps)) or len(set(taps)) < len(taps):
        raise damaged(f"{taps!r:.80} cannot be layers below layer {index['layer']}", path, field="taps")
    scale = SCALE if index["dtype"] in EIGHT_BITS else {}
    if index.get("fields") != sorted({"hidden": "", **TOKEN_FIELDS, **ROW_FIELDS, **scale}):
        raise damaged(f"{index.get('fields')!r:.200} cannot be the fields of {index['dtype']} states", path, field="fields")
    for shard in index["shards"]:
        _check_entries(shard, SHARD, path)
    return index


def read_table(folder: Path, index: dict[str, Any]) -> tuple[dict[str, np.ndarray], Tensor | None]:
    """Columns with a line per block or row, and the scale of each channel of states in eight bits.

    Raises:
        ShardError: it is missing, damaged, or does not fit the index.
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
    form = None if channel is None else (channel.dtype, channel.shape)
    if form != ((torch.float32, (channels(index),)) if index["dtype"] in EIGHT_BITS else None):
        raise damaged(f"{form} does not fit {index['dtype']} states of {channels(index)}", path, field="channel")
    blocks, rows = (sum(shard[name] for shard in index["shards"]) for name in ("blocks", "rows"))
    expected = {"block/fields": (blocks, len(index["fields"])), **dict.fromkeys(("row/uid", "row/length", "row/crc"), (rows,))}
    expected |= dict.fromkeys(("block/offset", "block/bytes", "block/rows", "block/crc"), (blocks,))
    shapes = {name: tuple(value.shape) for name, value in arrays.items() if value.dtype == torch.int64}
    if shapes != expected or len(arrays) != len(expected):
        raise damaged(f"its columns do not fit {blocks} blocks and {rows} rows", path)
    table = {name: value.numpy() for name, value in arrays.items()}
    count, length = table["block/rows"], table["row/length"]
    if not ((count > 0) & (count <= rows)).all() or count.sum() != rows:
        raise damaged(f"they do not cut {rows} rows", path, field="block/rows")
    if not ((length > 0) & (length <= index["sequence"])).all() or not (index["padded"] or (length == index["sequence"]).all()):
        raise damaged(f"they do not fit sequences of {index['sequence']} tokens", path, field="row/length")
    return table, channel


def channels(index: dict[str, Any]) -> int:
    """Count the numbers that are stored of a token's states: those at the split, and as many for every tap."""
    return int(index["dim"]) * (1 + len(index.get("taps", ())))


def _check_entries(entries: dict[str, Any], rules: dict[str, Fits], path: Path) -> None:
    for name, fits in rules.items():
        if not fits(entries.get(name)):
            raise damaged(f"{entries.get(name)!r:.80} cannot be what extract wrote", path, field=name)


class ShardIndex:
    """What is stored in a folder of shards: one row for every (split, draw, row), in blocks.

    Attributes:
        index: what extract wrote about itself.
        fingerprint: hash of the index and so of every byte.
        inputs: digests of the backbone and the prepared data that the states were made from, by stage.
        channel: scale of each channel, of states in eight bits; else None.
        shards: entries of the files, in the order of their rows.
        shard, rows, tokens, offset, size, hidden: of each block: its file, how many rows and tokens, where in its file it begins,
            how many bytes it takes up there, and where its states begin.
        uid, length, block, start: of each row: identity, tokens, block, and at which of the block's tokens it begins.
        store: where the files lie if not beside the index; else None.
        taps: layers whose entering states lie behind those at the split, in every token.
        width: bytes of one token's states.
        packed: dtype of one token's small fields, as a record.
        padding: that record where there is no token.

    Raises:
        DataError: extraction never finished, or the index is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self.fingerprint: str = self.index["fingerprint"]
        self.inputs = {"backbone": self.index["backbone"], "prepare": self.index["prepared"]}
        table, self.channel = read_table(self.folder, self.index)
        self.shards: list[dict[str, Any]] = self.index["shards"]
        self._fields: list[str] = self.index["fields"]
        self.offset, self.size, self.rows = table["block/offset"], table["block/bytes"], table["block/rows"]
        self._starts, self._crc = table["block/fields"], table["block/crc"]
        self.hidden = self._starts[:, self._fields.index("hidden")]
        self.shard = np.repeat(np.arange(len(self.shards)), [shard["blocks"] for shard in self.shards])
        self.uid, self.length, self._row_crc = table["row/uid"], table["row/length"], table["row/crc"]
        self.block = np.repeat(np.arange(len(self.rows)), self.rows)
        ends = np.concatenate([[0], np.cumsum(self.length)])
        first = np.concatenate([[0], np.cumsum(self.rows)])
        self.tokens = np.diff(ends[first])
        self.start = ends[:-1] - ends[first[self.block]]
        self.store = Store(url) if (url := self.index.get("store")) else None
        self.taps = tuple(self.index.get("taps", ()))
        self.width = channels(self.index) * STATES[self.index["dtype"]].itemsize
        small = {**TOKEN_FIELDS, **(SCALE if "scale" in self._fields else {})}
        self.packed = np.dtype([(name, NUMPY[kind]) for name, kind in small.items()])
        self.padding = np.zeros((), self.packed)
        self.padding["tokens"] = self.padding["targets"] = self.index["pad_id"]
        self._block_checked, self.row_checked = np.zeros(len(self.rows), bool), np.zeros(len(self.uid), bool)

    def stored(self, split: str, draw: int) -> Tensor:
        """Positions of the rows of one draw of a split, as they lie in its files.

        Raises:
            DataError: nothing is stored for it.
        """
        ends = np.cumsum([shard["rows"] for shard in self.shards])
        parts = [
            torch.arange(end - shard["rows"], end)
            for shard, end in zip(self.shards, ends.tolist(), strict=True)
            if (shard["split"], shard["draw"]) == (split, draw)
        ]
        if not parts:
            raise DataError(f"{self.folder} holds no draw {draw} of split '{split}'; run dvc repro extract")
        return torch.cat(parts)

    def states(self, block: int) -> tuple[int, int]:
        """Where in its file the states of a block begin and end."""
        begin = int(self.hidden[block])
        return begin, begin + int(self.tokens[block]) * self.width

    def columns(self, block: int, front: bytes, back: bytes) -> memoryview:
        """The small fields of a block, one record a token, as bytes: numpy copies records field by field.

        Args:
            block: its number.
            front: what stands before its states, tar header included.
            back: what stands behind them, up to the end of its last tar unit.

        Raises:
            ShardError: these are not the bytes that were written.
        """
        if not self._block_checked[block]:
            self._check_block(block, front, back)
        begin, (hidden, after) = int(self.offset[block]), self.states(block)
        columns = np.empty(int(self.tokens[block]), self.packed)
        for name in self.packed.names or ():
            start = int(self._starts[block, self._fields.index(name)])
            part, at = (front, start - begin) if start < hidden else (back, start - after)
            try:
                columns[name] = np.frombuffer(part, self.packed[name], len(columns), at)
            except ValueError:
                raise self.damaged("it does not lie within its block", block, name) from None
        return columns.view(np.uint8).data

    def check_row(self, row: int, piece: memoryview) -> None:
        """Raise ShardError unless these are the states that were written."""
        if zlib.crc32(piece) != self._row_crc[row]:
            what = f"states of row {self.uid[row]} are not those that were written"
            raise self.damaged(what, int(self.block[row]), "hidden")
        self.row_checked[row] = True

    def batch(self, states: Tensor, packed: np.ndarray, lengths: np.ndarray) -> dict[str, Tensor]:
        """Fields of padded rows by their names, from the bytes of their states and the records of their tokens."""
        fields = {name: torch.from_numpy(packed[name].copy()) for name in packed.dtype.names or ()}
        hidden = states.view(STATES[self.index["dtype"]]).unflatten(0, (*packed.shape, -1))
        return {**fields, "hidden": hidden, "length": torch.from_numpy(lengths)}

    def damaged(self, what: str, block: int, field: str = "") -> ShardError:
        """An error that says which block of which file is damaged."""
        number = int(self.shard[block])
        return damaged(what, self.folder / self.shards[number]["file"], f"{self.member(block):06d}.safetensors", field)

    def member(self, block: int) -> int:
        """Number of a block within its file."""
        return block - int(np.searchsorted(self.shard, self.shard[block]))

    def _check_block(self, block: int, front: bytes, back: bytes) -> None:
        """Tar header, fields and filling are those that were written, and the fields are those that the index speaks of."""
        if zlib.crc32(front[:TAR_UNIT], zlib.crc32(back, zlib.crc32(front[TAR_UNIT:]))) != self._crc[block]:
            raise self.damaged("what stands beside the states is not what was written", block)
        try:
            header, base = layout(front[TAR_UNIT:])
        except ValueError as error:
            raise self.damaged(str(error), block) from None
        tokens, rows, width = int(self.tokens[block]), int(self.rows[block]), channels(self.index)
        schema = {name: (kind, [tokens]) for name, kind in {**TOKEN_FIELDS, **SCALE}.items()}
        schema |= {
            "uid": ("I64", [rows]),
            "cu_seqlens": ("I64", [rows + 1]),
            "hidden": (NAMES[self.index["dtype"]], [tokens, width]),
        }
        origin = int(self.offset[block]) + TAR_UNIT + base
        for name, start in zip(self._fields, self._starts[block].tolist(), strict=True):
            kind, shape, offsets = (header.get(name, {}).get(key) for key in ("dtype", "shape", "data_offsets"))
            if (kind, shape) != schema[name]:
                raise self.damaged(f"{kind} {shape}, the index speaks of {schema[name][0]} {schema[name][1]}", block, name)
            if not isinstance(offsets, list) or offsets[:1] != [start - origin]:
                raise self.damaged(f"it lies at {offsets}, the index says {start - origin}", block, name)
        self._block_checked[block] = True
