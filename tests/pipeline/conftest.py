"""Fixtures of the pipeline's tests: a machine to compute on, and handmade data small enough to read."""

import pytest
import torch

from components.masking import exact_count
from pipeline.prepared import Split, Vocabulary
from pipeline.runtime import Runtime
from pipeline.shards import Shards, write_index, write_shard


@pytest.fixture
def runtime():
    """One CPU thread; determinism is switched off again afterwards."""
    yield Runtime(threads=1)
    torch.use_deterministic_algorithms(False)


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
        folder, entries = tmp_path / f"shards_{n}_{draws}", []
        for split, draw in [("train", d) for d in range(draws)] + [("validation", 0)]:
            for number, first in enumerate(range(0, n, 12)):
                chosen = [torch.arange(i, min(i + 4, first + 12, n)) for i in range(first, min(first + 12, n), 4)]
                blocks = [block(rows(n).take(c), 1000.0 * draw) for c in chosen]
                entry = write_shard(folder / f"{split}-{draw}-{number}.tar", blocks)
                entries.append({**entry, "split": split, "draw": draw})
        write_index(folder, {"backbone": "b" * 64, "layer": 1, "mask_id": 100, "draws": draws, "shards": entries})
        return Shards(folder)

    return make


def block(split, offset=0.0):
    """One block of states: what extraction writes for some rows."""
    noise = torch.rand(len(split), 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masked, weights = exact_count(split.response, noise)
    hidden = split.tokens.float()[..., None].expand(len(split), 6, 2) + offset
    return {"uid": split.uid, "tokens": split.tokens, "masked": masked, "weights": weights, "hidden": hidden}
