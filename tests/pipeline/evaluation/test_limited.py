"""A limited folder: the first examples of every split, all that is theirs."""

import pytest

from pipeline.corpora.prepared import write
from pipeline.errors import ConfigError
from pipeline.evaluation.limited import Limited


@pytest.mark.parametrize(("limit", "there"), [(None, [5, 6, 7, 8]), (1, [5]), (3, [5, 6, 7]), (9, [5, 6, 7, 8])])
def test_the_first_examples_are_taken(tmp_path, rows, vocabulary, limit, there):
    write(tmp_path, vocabulary, {"train": rows(5), "validation": rows(4)}, {})
    split = Limited(tmp_path, limit).split("validation")
    assert split.uid.tolist() == there and len(split) == len(split.tokens) == len(split.group) == len(there)


@pytest.mark.parametrize("limit", [0, -2])
def test_no_examples_are_no_limit(tmp_path, limit):
    with pytest.raises(ConfigError, match=rf"evaluate.run.limit is {limit}; expected how many"):
        Limited(tmp_path, limit)
