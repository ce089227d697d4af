"""The order of rows: once an epoch, full steps, few of mixed lengths, blocks together where asked for, by seed and step alone."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.training.order import DeterministicSampler

hypothesis_settings = settings(max_examples=60, deadline=None)
EPOCHS = 4


@st.composite
def orders(draw, kinds=4):
    """Rows of up to ``kinds`` lengths in blocks of up to 5, steps of any size that the rows allow."""
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=kinds).filter(any))
    lengths = torch.arange(1, len(counts) + 1).repeat_interleave(torch.tensor(counts)) * 10
    size = draw(st.integers(1, min(12, len(lengths))) | st.integers(1, len(lengths)))
    blocks = torch.arange(len(lengths)) // draw(st.integers(1, 5))
    return DeterministicSampler(lengths, size, draw(st.integers(0, 2**40)), blocks, draw(st.integers(0, 5)))


def alike(n):
    """Lengths of n rows."""
    return torch.full((n,), 7)


def steps_of(order, epochs=EPOCHS):
    """Every step that holds a row of the first ``epochs`` epochs, as (row, epoch) pairs."""
    number = -(-epochs * len(order.lengths) // order.size)
    return [list(zip(*(part.tolist() for part in order.step(n)), strict=True)) for n in range(number)]


@hypothesis_settings
@given(orders())
def test_every_epoch_holds_each_row_once_and_every_step_is_full(order):
    steps = steps_of(order)
    assert {len(step) for step in steps} == {order.size}
    seen = [pair for step in steps for pair in step]
    assert [epoch for _, epoch in seen] == sorted(epoch for _, epoch in seen)
    counts = Counter(seen)
    assert all(counts[row, epoch] == 1 for epoch in range(EPOCHS) for row in range(len(order.lengths)))
    assert set(counts.values()) == {1}


@hypothesis_settings
@given(orders(), st.integers(0, 40), st.integers(0, 40))
def test_a_step_is_the_same_whatever_was_asked_before(order, number, earlier):
    fresh = DeterministicSampler(order.lengths, order.size, order.seed, order.blocks, order.near)
    for other in (earlier, number + 9, 0):
        order.step(other)
    for a, b in zip(order.step(number), fresh.step(number), strict=True):
        assert torch.equal(a, b)


@hypothesis_settings
@given(orders(kinds=3))
def test_steps_are_of_one_length_but_for_a_few_an_epoch(order):
    """Within an epoch what is left over of L lengths makes up fewer than L steps; one more may reach over its end."""
    kinds = len(order.lengths.unique())
    mixed = Counter()
    for step in steps_of(order):
        epochs = {epoch for _, epoch in step}
        if len(epochs) == 1 and len({int(order.lengths[row]) for row, _ in step}) > 1:
            mixed[epochs.pop()] += 1
    assert all(count < kinds for count in mixed.values())


@pytest.mark.parametrize("counts", [(101, 100), (40, 33, 69), (3, 200), (50, 1, 1, 1, 50)])
def test_the_first_rows_of_an_epoch_complete_the_last_step_of_the_one_before(counts):
    """So that steps of one length stay whole in every epoch, although none but the first begins with a step."""
    order = DeterministicSampler(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), 8, 1)
    steps = steps_of(order, epochs=8)
    mixed = sum(len({int(order.lengths[row]) for row, _ in step}) > 1 for step in steps)
    assert len(steps) == sum(counts) and mixed <= 8 * len(counts)  # each epoch's: fewer than its lengths, one at its end


@pytest.mark.parametrize("size", [7, 8, 16, 100])
def test_lengths_that_fill_their_steps_are_never_mixed(size):
    """Eight steps of each length an epoch, and no rows over: not even at the border of epochs."""
    order = DeterministicSampler(torch.arange(3).repeat(8 * size), size, 5)
    steps = steps_of(order)
    assert len(steps) == EPOCHS * 24 and all(len({row % 3 for row, _ in step}) == 1 for step in steps)


def test_steps_of_different_lengths_come_in_mixed_order():
    order = DeterministicSampler(torch.arange(400) // 200, 10, 0)
    kinds = [step[0][0] // 200 for step in steps_of(order, epochs=1)]
    assert sorted(kinds) == [0] * 20 + [1] * 20
    assert 10 < sum(a != b for a, b in pairwise(kinds)) < 30  # 20 expected, 1 if sorted


def test_order_changes_with_epoch_and_seed():
    rows = {
        (seed, epoch): tuple(DeterministicSampler(alike(40), 8, seed).epoch(epoch).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(rows.values())) == 6 and tuple(range(40)) not in rows.values()
    assert rows[1, 2] == tuple(DeterministicSampler(alike(40), 8, 1).epoch(2).tolist())


def test_a_step_at_the_border_takes_rows_of_both_epochs():
    order = DeterministicSampler(alike(10), 4, 3)
    rows, epochs = order.step(2)
    assert epochs.tolist() == [0, 0, 1, 1]
    assert rows.tolist() == [*order.epoch(0)[8:].tolist(), *order.epoch(1)[:2].tolist()]


@pytest.mark.parametrize("near", [1, 2, 3, 8])
def test_near_shuffling_reads_that_many_blocks_at_a_time(near):
    """Twelve blocks of five rows: rows come in groups of ``near`` whole blocks, others in every epoch."""
    order = DeterministicSampler(alike(60), 6, 0, torch.arange(60) // 5, near)
    seen = []
    for epoch in range(EPOCHS):
        groups = order.epoch(epoch).split(5 * near)
        touched = [sorted({row // 5 for row in group.tolist()}) for group in groups]
        assert all(len(blocks) <= near for blocks in touched) and sum(map(len, touched)) == 12
        assert all(group.tolist() != sorted(group.tolist()) for group in groups)
        seen.append(touched)
    assert all(a != b for a, b in pairwise(seen))


@pytest.mark.parametrize("near", [0, 12])
def test_without_near_or_with_all_blocks_rows_mix_over_everything(near):
    order = DeterministicSampler(alike(60), 6, 0, torch.arange(60) // 5, near)
    assert len({row // 5 for row in order.epoch(0)[:15].tolist()}) > 6


def test_every_row_comes_at_every_place_equally_often():
    places = torch.stack([DeterministicSampler(alike(5), 2, 0).epoch(epoch) for epoch in range(2000)])
    for row in range(5):
        assert ((places == row).double().mean(0) - 0.2).abs().max() < 4 * (0.2 * 0.8 / 2000) ** 0.5


def test_fewer_rows_than_a_step_takes_are_refused():
    with pytest.raises(ValueError, match=r"a step of 9 rows needs at least as many training examples, there are 8"):
        DeterministicSampler(alike(8), 9, 0)
    assert len(DeterministicSampler(alike(8), 8, 0).step(5)[0]) == 8


@pytest.mark.parametrize("near", [1, 4])
def test_files_come_in_any_order_and_their_blocks_in_theirs(near):
    """Five files of three blocks of four rows each."""
    blocks, shards = torch.arange(60) // 4, torch.arange(15) // 3
    order = DeterministicSampler(alike(60), 8, 3, blocks, near, shards)
    readings = [order.reading(epoch).tolist() for epoch in range(4)]
    for epoch, reading in enumerate(readings):
        files = [reading[i : i + 3] for i in range(0, 15, 3)]
        assert sorted(files) == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(5)]
        rows = [int(blocks[row]) for row in order.epoch(epoch)]
        for begin in range(0, 15, near):
            window = reading[begin : begin + near]
            assert Counter(rows[4 * begin : 4 * (begin + near)]) == dict.fromkeys(window, 4)
    assert len({tuple(reading) for reading in readings}) == 4
