"""prepare: what a corpus names must be known to the stages behind it."""

import pytest
import torch

from pipeline.corpora.prepared import Prepared, Split, Vocabulary
from pipeline.errors import DataError
from stages import prepare


class Handmade:
    """A corpus of someone's own."""

    causal = False

    def __init__(self, rendering):
        self.rendering = rendering

    def shape(self):
        return 5, 4

    def prepare(self, seed, out):
        split = Split(torch.zeros(3, 4, dtype=torch.int32), torch.ones(3, 4, dtype=torch.bool), torch.arange(3))
        return Vocabulary(5, 4, 4, 4, self.rendering), {"train": split, "validation": split}, {}


def test_a_corpus_of_ones_own_is_prepared(tmp_path):
    prepare.run(out=str(tmp_path), corpus=Handmade("sudoku"), seed=0)
    assert len(Prepared(tmp_path).split("train")) == 3


def test_a_rendering_that_no_later_stage_knows_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"Vocabulary.rendering is 'chess'; expected one of sudoku, text, sentences"):
        prepare.run(out=str(tmp_path / "out"), corpus=Handmade("chess"), seed=0)
    assert not (tmp_path / "out").exists()
