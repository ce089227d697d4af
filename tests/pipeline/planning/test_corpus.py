"""The batch that takes the most memory: the longest examples, their answers masked as a whole."""

import pytest
import torch

from components.objective.masking import exact_count
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.planning.corpus import Corpus

SEQ = 12
EXAMPLES = [(2, 5), (3, 12), (1, 6), (4, 12), (5, 9), (1, 4)]  # where answers begin and end


def corpus(causal):
    begin, end = torch.tensor(EXAMPLES).T[:, :, None]
    places = torch.arange(SEQ)
    split = Split(
        tokens=torch.ones(len(EXAMPLES), SEQ, dtype=torch.int32), response=(places >= begin) & (places < end),
        group=torch.arange(len(EXAMPLES)), valid=places < end, uid=torch.arange(len(EXAMPLES)),
    )  # fmt: skip
    return Corpus({"train": split, "validation": split}, Vocabulary(5, 4, 0, SEQ, "text", causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("buckets", "n", "rows"),
    [
        ((), 1, [1]),  # all are padded to the whole sequence: the longest answer
        ((), 3, [1, 3, 2]),
        ((6, 9), 2, [1, 3]),
        ((6, 9), 3, [1, 3, 4]),
        ((4,), 2, [1, 3]),
        ((6,), 9, [1, 3, 4, 2, 0, 5]),  # more than there are
    ],
)
def test_the_widest_batch(split, buckets, n, rows, causal):
    batch = corpus(causal).widest(split, {"masking": exact_count, "seed": 0, "buckets": buckets}, n)
    assert batch.tokens.shape == (len(rows), SEQ)
    masked = [EXAMPLES[row][1] - EXAMPLES[row][0] for row in rows]
    assert batch.masked.sum(1).tolist() == masked
    assert batch.attention.sum(1).tolist() == [EXAMPLES[row][1] for row in rows]
