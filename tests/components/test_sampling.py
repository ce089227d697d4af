from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.sampling import low_confidence_remasking, parallel

hypothesis_settings = settings(max_examples=25, deadline=None)
VOCAB, MASK = 7, 6


@st.composite
def puzzles(draw, rows=4):
    """Token ids of which some are the mask."""
    seq, batch = draw(st.integers(1, 10)), draw(st.integers(1, rows))
    row = st.lists(st.integers(0, MASK) | st.just(MASK), min_size=seq, max_size=seq)
    return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))


class Model:
    """Logits of a place depend on the place and on the whole row, by table look-up alone; the mask id is always most likely."""

    def __init__(self, seed=0):
        self.table = torch.randn(64, 10, VOCAB, generator=torch.Generator().manual_seed(seed))
        self.table[..., MASK] = 9.0
        self.seen = []

    def __call__(self, tokens):
        self.seen.append(tokens.clone())
        key = (tokens * (1 + torch.arange(tokens.shape[1]))).sum(1) % 64
        return self.table[key, : tokens.shape[1]]


def plain_decode(table, row, steps, blocks):
    """One row, one place at a time, in Python lists."""
    row = list(row)
    wanted = [i for i, token in enumerate(row) if token == MASK]
    for block in range(blocks):
        places = wanted[len(wanted) * block // blocks : len(wanted) * (block + 1) // blocks]
        passes = steps // blocks
        size = len(places)
        for p in range(passes):
            logits = table[sum((i + 1) * token for i, token in enumerate(row)) % 64]
            guesses = {}
            for i in places:
                if row[i] == MASK:
                    probabilities = logits[i, :MASK].softmax(-1).tolist()
                    guesses[i] = (max(probabilities), probabilities.index(max(probabilities)))
            share = size // passes + (p < size % passes)
            for i in sorted(guesses, key=lambda i: -guesses[i][0])[:share]:
                row[i] = guesses[i][1]
    return row


@hypothesis_settings
@given(puzzles())
def test_parallel_fills_every_mask_in_one_pass_with_the_most_likely_other_token(tokens):
    model = Model()
    out = parallel(model, tokens, MASK)
    assert len(model.seen) == 1
    likely = Model()(tokens)[..., :MASK].argmax(-1)
    assert out.tolist() == [
        [likely[b, s].item() if tokens[b, s] == MASK else tokens[b, s].item() for s in range(tokens.shape[1])]
        for b in range(len(tokens))
    ]
    assert not (out == MASK).any()


def test_a_mask_id_in_the_middle_of_the_vocabulary_is_never_predicted_either():
    logits = torch.zeros(1, 3, 5)
    logits[..., 2], logits[..., 4] = 9.0, 1.0
    tokens = torch.tensor([[2, 0, 2]])
    assert parallel(lambda _: logits, tokens, 2).tolist() == [[4, 0, 4]]
    assert low_confidence_remasking(lambda _: logits, tokens, 2, steps=2).tolist() == [[4, 0, 4]]


@hypothesis_settings
@given(puzzles(), st.integers(1, 3), st.integers(1, 4))
def test_remasking_equals_a_plain_decoder_row_by_row(tokens, blocks, passes):
    model = Model()
    out = low_confidence_remasking(model, tokens, MASK, steps=blocks * passes, blocks=blocks)
    assert out.tolist() == [plain_decode(model.table, row, blocks * passes, blocks) for row in tokens.tolist()]


@hypothesis_settings
@given(puzzles(), st.integers(1, 12))
def test_each_pass_commits_its_share_the_remainder_first(tokens, steps):
    model = Model()
    out = low_confidence_remasking(model, tokens, MASK, steps)
    assert len(model.seen) == steps
    remaining = torch.stack([(seen == MASK).sum(1) for seen in [*model.seen, out]])
    for row, total in enumerate((tokens == MASK).sum(1).tolist()):
        shares = [total // steps + (step < total % steps) for step in range(steps)]
        assert remaining[:, row].diff().neg().tolist() == shares
    assert not (out == MASK).any()


@hypothesis_settings
@given(puzzles(), st.integers(1, 3), st.integers(1, 4))
def test_clues_and_committed_tokens_never_change(tokens, blocks, passes):
    model = Model()
    out = low_confidence_remasking(model, tokens, MASK, blocks * passes, blocks)
    seen = [*model.seen, out]
    for before, after in pairwise(seen):
        assert torch.equal(after[before != MASK], before[before != MASK])


@hypothesis_settings
@given(puzzles())
def test_one_step_is_parallel_decoding(tokens):
    assert torch.equal(low_confidence_remasking(Model(), tokens, MASK, steps=1), parallel(Model(), tokens, MASK))


@hypothesis_settings
@given(puzzles(), st.integers(1, 4), st.integers(1, 3))
def test_blocks_are_filled_left_to_right(tokens, blocks, passes):
    model = Model()
    low_confidence_remasking(model, tokens, MASK, blocks * passes, blocks)
    for row in range(len(tokens)):
        wanted = (tokens[row] == MASK).nonzero().flatten().tolist()
        for block in range(1, blocks):
            left = len(wanted) * block // blocks
            at_start = model.seen[block * passes][row]
            assert [i for i in wanted if at_start[i] == MASK] == wanted[left:]


@hypothesis_settings
@given(puzzles(), st.integers(1, 5))
def test_a_row_decodes_the_same_alone_as_in_a_batch(tokens, steps):
    together = low_confidence_remasking(Model(), tokens, MASK, steps)
    for row in range(len(tokens)):
        assert torch.equal(low_confidence_remasking(Model(), tokens[row : row + 1], MASK, steps), together[row : row + 1])


@pytest.mark.parametrize(("steps", "blocks"), [(5, 2), (2, 4), (0, 1), (4, 0), (-2, 1)])
def test_blocks_that_do_not_divide_steps_are_an_error_naming_both(steps, blocks):
    with pytest.raises(ValueError, match=rf"steps {steps} and blocks {blocks}\b"):
        low_confidence_remasking(Model(), torch.tensor([[MASK]]), MASK, steps, blocks)
