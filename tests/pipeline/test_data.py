"""Batches: order as a pure function of seed and epoch, exact resumption, and cached states that equal live ones bit for bit."""

from dataclasses import fields
from itertools import islice

import pytest
import torch

from components.batch import Batch
from components.masking import exact_count
from pipeline.backbones import Backbone
from pipeline.data import VALIDATION, Cached, Examples, assemble, loader
from pipeline.prepared import Prepared
from pipeline.shards import Shards


def ids(batches):
    return [int(i) for batch in batches for i in batch.targets[:, 0]]


def same(a: Batch, b: Batch):
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch)]
    return all(x is y if x is None or y is None else x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


@pytest.fixture(params=["examples", "cached"])
def source_of(request, rows, vocabulary, shards_of):
    """``source_of(n)``: the same n rows, live or from shards."""

    def source(n, window=16):
        if request.param == "cached":
            return Cached(shards_of(n), "train", window)
        return Examples(rows(n), vocabulary, exact_count, 0)

    return source


# Order


@pytest.mark.parametrize(("n", "size"), [(24, 4), (40, 8), (36, 12), (40, 40), (30, 3)])
def test_an_epoch_visits_every_row_once(source_of, n, size):
    batches = list(source_of(n).epoch(1, size, shuffle=7))
    assert {len(batch) for batch in batches} == {size}
    assert sorted(ids(batches)) == list(range(n))


@pytest.mark.parametrize(("n", "size"), [(40, 12), (13, 5), (25, 24)])
def test_training_drops_the_last_partial_batch(source_of, n, size):
    batches = list(source_of(n).epoch(0, size, shuffle=7))
    assert [len(batch) for batch in batches] == [size] * (n // size)
    assert len(set(ids(batches))) == n // size * size


@pytest.mark.parametrize(("n", "size"), [(40, 12), (13, 5), (24, 24), (5, 256)])
def test_without_shuffling_every_row_comes_in_stored_order(source_of, n, size):
    batches = list(source_of(n).epoch(0, size, shuffle=None))
    assert ids(batches) == list(range(n))
    assert all(len(batch) == size for batch in batches[:-1])


def test_order_is_a_function_of_seed_and_epoch(source_of):
    source = source_of(40)
    order = {(seed, epoch): tuple(ids(source.epoch(epoch, 8, seed))) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(set(order.values())) == 6
    assert all(tuple(ids(source_of(40).epoch(epoch, 8, seed))) == seen for (seed, epoch), seen in order.items())


def test_rows_are_shuffled_across_shards(shards_of):
    """A window over everything mixes all shards into the first batch; a window of one batch leaves a shard's rows together."""
    wide = ids(islice(Cached(shards_of(36), "train", 36).epoch(0, 12, 3), 1))
    narrow = ids(islice(Cached(shards_of(36), "train", 1).epoch(0, 12, 3), 1))
    assert len({i // 12 for i in wide}) == 3 and len({i // 12 for i in narrow}) == 1
    assert narrow != sorted(narrow)


def test_length_is_the_number_of_rows(source_of):
    assert len(source_of(29)) == 29


# Masks and draws


def test_cached_epochs_walk_the_draws(shards_of):
    source = Cached(shards_of(12, draws=3), "train", 12)
    seen = [{int(h) // 1000 for b in source.epoch(epoch, 4, 0) for h in b.hidden.flatten()} for epoch in range(7)]
    assert seen == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]


def test_cached_validation_is_the_same_every_epoch(shards_of):
    source = Cached(shards_of(12, draws=3), "validation", 12)
    first, second = (list(source.epoch(epoch, 4, None)) for epoch in (0, 5))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def masks(source, epoch):
    return torch.cat([b.masked for b in source.epoch(epoch, 8, None)])


def test_live_masks_are_new_every_epoch(rows, vocabulary):
    source = Examples(rows(16), vocabulary, exact_count, 0)
    assert not torch.equal(masks(source, 0), masks(source, 1))
    assert torch.equal(masks(source, 1), masks(source, 1))
    assert not torch.equal(masks(source, 0), masks(Examples(rows(16), vocabulary, exact_count, 1), 0))


def test_live_masks_repeat_after_their_draws(rows, vocabulary):
    source = Examples(rows(16), vocabulary, exact_count, 0, draws=2)
    assert torch.equal(masks(source, 0), masks(source, 2)) and not torch.equal(masks(source, 0), masks(source, 1))


def test_validation_masks_are_fixed(rows, vocabulary):
    source = Examples(rows(16), vocabulary, exact_count, 0, stream=VALIDATION)
    assert torch.equal(masks(source, 0), masks(source, 9))


def test_a_rows_mask_does_not_depend_on_its_batch(rows, vocabulary):
    source = Examples(rows(16), vocabulary, exact_count, 0)
    alone = source.batch(torch.tensor([5]), 3)
    together = source.batch(torch.tensor([9, 5, 2]), 3)
    assert torch.equal(alone.masked[0], together.masked[1]) and torch.equal(alone.tokens[0], together.tokens[1])


def test_assemble_hides_the_masked_targets_alone():
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    masked = torch.tensor([[False, True, False], [True, False, True]])
    batch = assemble(tokens, masked, masked.double(), None, 9)
    assert batch.tokens.tolist() == [[1, 9, 3], [9, 5, 9]]
    assert torch.equal(batch.targets, tokens.long()) and batch.weights.dtype == torch.float32 and batch.attention is None


# The loader


@pytest.mark.parametrize("position", [1, 4, 5, 6, 13])
def test_a_resumed_loader_gives_the_remaining_batches(source_of, position):
    """Five batches an epoch: the positions lie within epochs, at their borders and beyond them."""
    whole = list(islice(iter(loader(source_of(40), 8, shuffle=3)), 17))
    stopped = loader(source_of(40), 8, shuffle=3)
    taken = list(islice(iter(stopped), position))
    resumed = loader(source_of(40), 8, shuffle=3)
    resumed.load_state_dict(stopped.state_dict())
    rest = list(islice(iter(resumed), 17 - position))
    assert all(same(a, b) for a, b in zip(whole, taken + rest, strict=True))


def test_a_finite_loader_ends_after_its_epochs_and_can_run_again(source_of):
    batches = loader(source_of(20), 8, epochs=2)
    assert [len(b) for b in batches] == [8, 8, 4] * 2
    assert ids(batches) == list(range(20)) * 2


def test_an_endless_loader_goes_from_epoch_to_epoch(source_of):
    source = source_of(24)
    seen = list(islice(iter(loader(source, 8, shuffle=3)), 7))
    expected = [b for epoch in range(3) for b in source.epoch(epoch, 8, 3)][:7]
    assert all(same(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_batch_larger_than_the_data_is_refused(source_of):
    with pytest.raises(ValueError, match=r"a batch of 25 needs at least as many training examples, there are 24"):
        loader(source_of(24), 25, shuffle=0)
    assert [len(b) for b in loader(source_of(24), 25, epochs=1)] == [24]  # validation may


# Cached equals live


@pytest.mark.parametrize(("split", "draw"), [("train", 0), ("train", 1), ("validation", 0)])
def test_cached_batches_equal_live_ones_bit_for_bit(finished, runtime, split, draw):
    """Of the rows of each extraction block: every field, hidden states included."""
    prepared, shards, backbone = (
        Prepared(finished / "data/prepared"),
        Shards(finished / "data/shards"),
        Backbone(finished / "data/backbone"),
    )
    stream = VALIDATION if split == "validation" else None
    live = Examples(
        prepared.split(split), prepared.vocabulary, exact_count, 0,
        stream=stream, trunk=backbone.model().eval().requires_grad_(False), layer=shards.index["layer"],
    )  # fmt: skip
    size, n = shards.index["batch_size"], len(live)
    cached = list(Cached(shards, split, size).epoch(draw, size, None))
    blocks = [torch.arange(first, min(first + size, n)) for first in range(0, n, size)]
    assert len(cached) == len(blocks) == (2 if split == "train" else 1)
    for batch, rows in zip(cached, blocks, strict=True):
        assert batch.hidden is not None and same(batch, live.batch(rows, draw))
