"""Shards of hidden states: WebDataset tars and an index. The only door to ``webdataset``.

A tar member is one block: the rows of one extraction batch as safetensors (blocks keep the per-sample cost of tar and Python
away, and record the batch plan that the bits depend on). Tars carry no clock, user or host: same states, same bytes.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from webdataset.tariterators import tar_file_iterator

from pipeline.errors import DataError
from pipeline.files import read_json, sha256, verify, write_atomic, write_json

Block = dict[str, Tensor]


def write_shard(path: Path, blocks: Iterable[Block]) -> dict[str, Any]:
    """Write one tar of blocks; returns its index entry (file, examples, sha256).

    Raises:
        DataError: a block holds a non-finite number, or there are no blocks.
    """
    buffer = io.BytesIO()
    examples = 0
    with wds.TarWriter(buffer, user="", group="", mtime=0, encoder=False) as tar:
        for number, block in enumerate(blocks):
            for name, tensor in block.items():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise DataError(f"{path}, block {number}: '{name}' holds non-finite numbers; check the backbone")
            examples += len(block["uid"])
            tar.write({"__key__": f"{number:06d}", "safetensors": save({k: v.contiguous() for k, v in block.items()})})
    if not examples:
        raise DataError(f"{path}: no examples to write")
    write_atomic(path, buffer.getvalue())
    return {"file": path.name, "examples": examples, "sha256": sha256(path)}


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write ``index.json`` last: a folder without it was never finished."""
    write_json(folder / "index.json", index)


class Shards:
    """A folder of shards, opened; every file is checked against the index on first use.

    Raises:
        DataError: extraction never finished.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = read_json(self.folder / "index.json", "extract")
        self._verified: set[str] = set()

    def entries(self, split: str, draw: int) -> list[dict[str, Any]]:
        """Index entries of one stored draw of a split.

        Raises:
            DataError: nothing is stored for it.
        """
        found = [e for e in self.index["shards"] if e["split"] == split and e["draw"] == draw]
        if not found:
            raise DataError(f"{self.folder} holds no draw {draw} of split '{split}'; run dvc repro extract")
        for entry in found:
            if entry["file"] not in self._verified:
                verify(self.folder / entry["file"], entry["sha256"], "extract")
                self._verified.add(entry["file"])
        return found

    def blocks(self, entries: list[dict[str, Any]]) -> Iterator[Block]:
        """Stream the blocks of the given shards in order.

        Raises:
            DataError: a member is not a block, or a shard yields another number of examples than the index promises.
        """
        for entry in entries:
            path = self.folder / entry["file"]
            examples = 0
            with path.open("rb") as file:
                for member in tar_file_iterator(file):
                    block = _decode(member["data"], f"{path}, member {member['fname']}")
                    examples += len(block["uid"])
                    yield block
            if examples != entry["examples"]:
                raise DataError(f"{path} holds {examples} examples, its index promises {entry['examples']}; run dvc repro extract")


def _decode(data: bytes, origin: str) -> Block:
    try:
        block: Block = load(data)
    except SafetensorError as error:
        raise DataError(f"{origin}: not a block of states ({error})") from None
    if missing := {"uid", "tokens", "masked", "weights", "hidden"} - set(block):
        raise DataError(f"{origin}: a block of states lacks {', '.join(sorted(missing))}")
    return block


def concatenate(blocks: list[Block]) -> Block:
    """Rows of several blocks as one."""
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
