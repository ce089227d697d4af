"""A corpus and a backbone to extract from."""

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.objective.masking import exact_count
from pipeline.corpora import prepared
from pipeline.corpora.prepared import Prepared, Split, Vocabulary
from pipeline.data import extraction
from pipeline.data.extraction import Extraction
from pipeline.models.backbones import Backbone, save_backbone

WORDS = Vocabulary(size=32, mask_id=30, pad_id=31, sequence=12, rendering="text")


def corpus(folder, ragged=True):
    """40 and 7 rows of up to twelve tokens."""
    generator, splits = torch.Generator().manual_seed(5), {}
    for name, n in (("train", 40), ("validation", 7)):
        tokens = torch.randint(30, (n, 12), generator=generator, dtype=torch.int32)
        lengths = torch.randint(3, 13, (n,), generator=generator) if ragged else torch.full((n,), 12)
        valid = torch.arange(12) < lengths[:, None]
        response = valid & (torch.arange(12) >= 1)
        tokens[~valid] = WORDS.pad_id
        splits[name] = Split(tokens, response, torch.arange(n), valid if ragged else None)
    prepared.write(folder, WORDS, splits, {})
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A corpus of ragged rows, one of full rows, and a backbone of three layers."""
    folder = tmp_path_factory.mktemp("inputs")
    corpus(folder / "ragged"), corpus(folder / "full", ragged=False)
    model = TinyLM(vocab=32, seq=12, dim=8, layers=3, heads=2, rotary=True)
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.positions, generator=torch.Generator().manual_seed(1))
    save_backbone(folder / "backbone", model, WORDS)
    return folder


@pytest.fixture
def planned(inputs, runtime):
    """``planned(...)``: an extraction of two draws; shards of at most two batches of five, blocks of at most three rows."""

    def planned(rows="ragged", **changes):
        settings = {
            "layer": 2,
            "taps": (),
            "draws": 2,
            "batch_size": 5,
            "buckets": (),
            "dtype": "fp32",
            "seed": 0,
            "masking": exact_count,
        }
        row = 12 * (8 * extraction.STORED[changes.get("dtype", "fp32")].itemsize + 17)
        settings |= {"shard_bytes": 10 * row, "block_bytes": 3 * row, **changes}
        return Extraction(Prepared(inputs / rows), Backbone(inputs / "backbone"), runtime, **settings)

    return planned
