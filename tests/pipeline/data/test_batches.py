"""Batches: a pure function of rows and epochs, padded no further than they need, cached states equal to live ones bit for bit."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.noise import uniform
from components.objective.masking import exact_count, often_full
from components.objective.nested import Nested
from components.training.grid_symmetries import grid_symmetries
from pipeline.corpora.prepared import Prepared, Split, Vocabulary, write
from pipeline.data.batches import VALIDATION, CachedSource, LiveSource, assemble, padded_lengths
from pipeline.data.reader import ShardReader
from pipeline.errors import ConfigError
from pipeline.models.backbones import Backbone, save_backbone
from stages import extract
from tests.pipeline.conftest import write_shards

ALL = torch.arange(16)


def same(a: Batch, b: Batch):
    """Every field and its type; states where there are tokens."""
    kept = torch.ones_like(a.masked) if a.attention is None else a.attention
    for name in (f.name for f in fields(Batch)):
        x, y = getattr(a, name), getattr(b, name)
        if not isinstance(x, torch.Tensor):
            assert x == y, name
        else:
            x, y = (x[kept], y[kept]) if name in ("hidden", "taps") else (x, y)
            assert x.dtype == y.dtype and torch.equal(x, y), name
    return True


def at(source, rows, epoch=0):
    rows = torch.as_tensor(rows)
    return source.batch(rows, torch.full_like(rows, epoch))


@pytest.fixture(params=["examples", "cached"])
def source_of(request, rows, vocabulary, shards_of):
    """``source_of(n)``: the same n rows, live or from shards."""

    def source(n):
        if request.param == "cached":
            return CachedSource(shards_of(n), "train")
        return LiveSource(rows(n), vocabulary, exact_count, 0, draws=2)

    return source


@pytest.fixture
def ragged(rows, vocabulary):
    """``ragged(n)``: n rows of 3, 4, 5, 6, 3, ... tokens, then padding."""

    def ragged(n):
        split = rows(n)
        valid = torch.arange(6) < 3 + torch.arange(n)[:, None] % 4
        tokens = torch.where(valid, split.tokens, vocabulary.pad_id).int()
        return replace(split, tokens=tokens, response=split.response & valid, valid=valid)

    return ragged


# Rows


def test_the_rows_that_were_asked_for_come_in_that_order(source_of):
    source, wanted = source_of(29), [28, 3, 3, 0, 17]
    batch = at(source, wanted)
    assert len(source) == 29 and len(source.padded) == 29
    assert batch.targets[:, 0].tolist() == wanted and batch.targets.dtype == torch.int64
    assert torch.equal(batch.tokens, torch.where(batch.masked, 100, batch.targets)) and bool(batch.masked.any(1).all())
    assert torch.equal(batch.weights > 0, batch.masked) and not batch.masked[:, :2].any()
    assert batch.attention is None


def test_a_row_is_the_same_in_any_batch(source_of):
    source = source_of(16)
    alone, together = at(source, [5], 3), at(source, [9, 5, 2], 3)
    for name in ("tokens", "targets", "masked", "weights"):
        assert torch.equal(getattr(alone, name)[0], getattr(together, name)[1])


def test_rows_of_different_epochs_come_together(source_of):
    """Where an optimizer step reaches over the end of an epoch."""
    source = source_of(16)
    batch = source.batch(torch.tensor([7, 7, 2]), torch.tensor([0, 1, 1]))
    for place, (row, epoch) in enumerate([(7, 0), (7, 1), (2, 1)]):
        alone = at(source, [row], epoch)
        assert torch.equal(batch.masked[place], alone.masked[0]) and torch.equal(batch.weights[place], alone.weights[0])
        assert batch.hidden is None or torch.equal(batch.hidden[place], alone.hidden[0])


# Masks and draws


def test_cached_epochs_walk_the_draws(shards_of):
    source = CachedSource(shards_of(12, draws=3), "train")
    seen = [{int(h) // 1000 for h in at(source, [4, 11, 0], epoch).hidden.flatten()} for epoch in range(7)]
    assert seen == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]


def test_cached_states_are_those_of_the_row(shards_of):
    hidden = CachedSource(shards_of(29), "train").batch(torch.tensor([28, 5, 13]), torch.tensor([0, 1, 2])).hidden
    assert hidden.tolist() == [[[x, x]] * 6 for x in (28.0, 1005.0, 13.0)]


def test_cached_validation_is_the_same_every_epoch(shards_of):
    source = CachedSource(shards_of(12, draws=3), "validation")
    assert same(at(source, [3, 1], 0), at(source, [3, 1], 5))


def test_blocks_number_what_is_stored_together(shards_of):
    shards = shards_of(29)
    for split in ("train", "validation"):
        assert CachedSource(shards, split).blocks.tolist() == [row // 4 for row in range(29)]


def test_a_cached_source_tells_where_it_comes_from(shards_of):
    shards = shards_of(12)
    source = CachedSource(shards, "train", near=3)
    assert (source.layer, source.fingerprint, source.near) == (1, shards.index["fingerprint"], 3)


def masks(source, epoch):
    return at(source, ALL, epoch).masked


def test_live_masks_are_new_every_epoch(rows, vocabulary):
    source = LiveSource(rows(16), vocabulary, exact_count, 0)
    assert not torch.equal(masks(source, 0), masks(source, 1))
    assert torch.equal(masks(source, 1), masks(source, 1))
    assert not torch.equal(masks(source, 0), masks(LiveSource(rows(16), vocabulary, exact_count, 1), 0))


def test_live_masks_repeat_after_their_draws(rows, vocabulary):
    source = LiveSource(rows(16), vocabulary, exact_count, 0, draws=2)
    assert torch.equal(masks(source, 0), masks(source, 2)) and not torch.equal(masks(source, 0), masks(source, 1))


@pytest.mark.parametrize("draws", [None, 2])
def test_validation_masks_are_fixed_and_no_training_masks(rows, vocabulary, draws):
    source = LiveSource(rows(16), vocabulary, exact_count, 0, stream=VALIDATION, draws=draws)
    assert torch.equal(masks(source, 0), masks(source, 9))
    assert not any(torch.equal(masks(source, 0), masks(LiveSource(rows(16), vocabulary, exact_count, 0), e)) for e in range(5))


PUZZLES = Vocabulary(size=5, mask_id=4, pad_id=4, sequence=16, rendering="sudoku")


def puzzles(n, uid=0):
    """n rows of a 4x4 grid, of which other cells are to be found."""
    grid = torch.tensor([int(cell) - 1 for cell in "1234341221434321"], dtype=torch.int32)
    numbers = uid + torch.arange(n)
    return Split(grid.expand(n, -1), (torch.arange(16) * 7 + numbers[:, None]) % 3 > 0, torch.zeros(n).long(), uid=numbers)


def augmented(split, masking=exact_count, **settings):
    return LiveSource(split, PUZZLES, masking, 0, **{"augment": grid_symmetries, **settings})


def test_other_puzzles_are_drawn_every_epoch_whatever_else_is_read(tmp_path):
    source, plain = augmented(puzzles(16)), LiveSource(puzzles(16), PUZZLES, exact_count, 0)
    first, second = at(source, ALL), at(source, ALL, 1)
    assert not torch.equal(first.targets, second.targets) and len(first.targets.unique(dim=0)) > 8
    again = augmented(puzzles(16))  # a run that goes on in epoch 1, a process that reads other rows, another order
    for rows in ([5], [9, 5, 2], list(range(15, -1, -1))):
        other = at(again, rows, 1)
        assert torch.equal(other.targets, second.targets[rows]) and torch.equal(other.masked, second.masked[rows])
    mixed = again.batch(torch.tensor([3, 3, 4]), torch.tensor([1, 0, 1]))
    assert torch.equal(mixed.targets, torch.stack([second.targets[3], first.targets[3], second.targets[4]]))
    assert torch.equal(first.masked.sum(1), at(plain, ALL).masked.sum(1)), "as many are masked as without"


def test_other_puzzles_are_those_that_the_noise_of_row_and_epoch_says():
    split, epochs = puzzles(8, uid=40), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    batch = augmented(split, draws=3).batch(torch.arange(8), epochs)
    for row, epoch in enumerate(epochs.tolist()):
        one, numbers = split.take(slice(row, row + 1)), uniform(0, (1 << 35) + epoch % 3, split.uid[row : row + 1], 17)
        tokens, response = grid_symmetries(one.tokens, one.response, numbers)
        assert torch.equal(batch.targets[row], tokens[0].long()) and not (batch.masked[row] & ~response[0]).any()


def test_the_draws_of_a_nested_group_are_of_one_puzzle():
    source = augmented(puzzles(12), Nested(exact_count, 2))
    for epoch in (0, 2):
        (more, fewer), next_group = (at(source, range(12), epoch + i) for i in (0, 1)), at(source, range(12), epoch + 2)
        assert torch.equal(more.targets, fewer.targets) and not (fewer.masked & ~more.masked).any()
        assert not torch.equal(more.targets, next_group.targets)


def test_validation_puzzles_stay_as_they_are():
    fixed = augmented(puzzles(6), stream=VALIDATION)
    assert torch.equal(at(fixed, range(6)).targets, puzzles(6).tokens.long())


def test_text_is_not_made_into_other_puzzles(rows, vocabulary):
    with pytest.raises(
        ConfigError, match="augment makes other grid puzzles of those of the corpus, and this one holds none; set it"
    ):
        LiveSource(rows(3), replace(vocabulary, rendering="text"), exact_count, 0, augment=grid_symmetries)


def test_assemble_hides_the_masked_targets_alone():
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    masked = torch.tensor([[False, True, False], [True, False, True]])
    batch = assemble(tokens, masked, masked.double(), None, Vocabulary(10, 9, 9, 3, "text"))
    assert batch.tokens.tolist() == [[1, 9, 3], [9, 5, 9]]
    assert torch.equal(batch.targets, tokens.long()) and batch.weights.dtype == torch.float32 and batch.attention is None


def test_a_causal_batch_hides_nothing_and_asks_for_the_token_that_follows():
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]], dtype=torch.int32)
    response = torch.tensor([[False, False, True, True], [False, True, True, False]])
    valid = torch.tensor([[True] * 4, [True, True, True, False]])
    batch = assemble(tokens, response, response / 2, valid, Vocabulary(8, 8, 0, 4, "text", causal=True))
    assert torch.equal(batch.tokens, tokens.long())
    assert batch.masked.tolist() == [[False, True, True, False], [True, True, False, False]]
    assert batch.targets[batch.masked].tolist() == [3, 4, 6, 7]
    assert batch.weights.tolist() == [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0]]


# Padding


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 50), max_size=4), st.data())
def test_a_row_takes_up_the_smallest_bucket_that_holds_it(sequence, buckets, data):
    lengths = data.draw(st.lists(st.integers(1, sequence), min_size=1, max_size=8))
    expected = [min(b for b in [*buckets, sequence] if length <= b <= sequence) for length in lengths]
    assert padded_lengths(torch.tensor(lengths), buckets, sequence).tolist() == expected


@pytest.fixture(params=["examples", "cached"])
def padded_source(request, ragged, vocabulary, tmp_path):
    """``padded_source(buckets)``: 16 ragged rows."""

    def source(buckets):
        if request.param == "cached":
            return CachedSource(ShardReader(write_shards(tmp_path / "ragged", ragged(16))), "train", buckets)
        return LiveSource(ragged(16), vocabulary, exact_count, 0, buckets=buckets)

    return source


@pytest.mark.parametrize(
    ("buckets", "chosen", "width"),
    [((), [0, 4], 6), ((4,), [0, 4, 1], 4), ((4,), [0, 2], 6), ((3, 4, 5), [0, 4], 3), ((5, 3), [0, 1], 5), ((4, 9), [3], 6)],
)
def test_a_batch_is_padded_to_the_bucket_of_its_longest_row(padded_source, buckets, chosen, width):
    source = padded_source(buckets)
    batch = at(source, chosen)
    assert int(source.padded[chosen].max()) == width
    lengths = torch.tensor([3 + row % 4 for row in chosen])
    inside = torch.arange(width) < lengths[:, None]
    assert torch.equal(batch.attention, inside)
    assert torch.equal(batch.targets, torch.where(inside, torch.tensor(chosen)[:, None], 101))
    assert (batch.tokens[~inside] == 101).all() and not batch.masked[~inside].any() and not batch.weights[~inside].any()
    if batch.hidden is not None:
        assert torch.equal(batch.hidden, (batch.targets * inside).float()[..., None].expand(-1, -1, 2))


def test_narrow_batches_hold_what_wide_ones_do(padded_source):
    wide, narrow = at(padded_source(()), [0, 8, 5]), at(padded_source((4,)), [0, 8, 5])
    assert wide.tokens.shape == (3, 6) and narrow.tokens.shape == (3, 4) and same(wide.cut(4), narrow)


# Cached equals live


@pytest.mark.parametrize(("split", "draw"), [("train", 0), ("train", 1), ("validation", 0)])
def test_cached_batches_equal_live_ones_bit_for_bit(finished, runtime, split, draw):
    """Of the rows of each extraction batch: every field, hidden states included."""
    prepared, shards = Prepared(finished / "data/prepared"), ShardReader(finished / "data/shards")
    stream = VALIDATION if split == "validation" else None
    live = LiveSource(
        prepared.split(split), prepared.vocabulary, often_full, 0, stream=stream,
        trunk=Backbone(finished / "data/backbone").model().eval().requires_grad_(False), layer=shards.index["layer"],
    )  # fmt: skip
    cached = CachedSource(shards, split)
    batches = torch.arange(len(live)).split(shards.index["batch_size"])
    assert len(cached) == len(live) and len(batches) == (2 if split == "train" else 1)
    for rows in batches:
        batch = at(cached, rows, draw)
        assert batch.hidden is not None and same(batch, at(live, rows, draw))


def text(n, seed):
    """Examples of 5 to 20 tokens."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(20) < torch.randint(5, 21, (n, 1), generator=generator)
    tokens = torch.where(valid, torch.randint(30, (n, 20), generator=generator), 31).int()
    return Split(tokens=tokens, response=valid & (torch.arange(20) >= 3), group=torch.arange(n), valid=valid)


@pytest.mark.parametrize("buckets", [(), (8, 14)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("taps", [(), (0,), (1, 0)])
def test_cached_batches_of_ragged_rows_equal_live_ones_bit_for_bit(runtime, vocabulary, tmp_path, buckets, dtype, taps):
    vocabulary = replace(vocabulary, size=32, mask_id=30, pad_id=31, sequence=20)
    write(tmp_path / "prepared", vocabulary, {"train": text(50, 0), "validation": text(9, 1)}, {})
    model = TinyLM(vocab=32, seq=20, dim=8, layers=3, heads=2)
    model.init_weights(torch.Generator().manual_seed(0))
    save_backbone(tmp_path / "backbone", model, vocabulary)
    extract.run(
        out=str(tmp_path / "shards"), prepared=str(tmp_path / "prepared"), backbone=str(tmp_path / "backbone"),
        masking=exact_count, tail_layers=1, taps=taps, draws=2, dtype=dtype, batch_size=7, buckets=buckets, seed=3,
        shard_bytes=14 * 20 * 45, block_bytes=5 * 20 * 45, runtime=runtime, store="",
    )  # fmt: skip
    shards, compared = ShardReader(tmp_path / "shards"), 0
    for split, draw in (("train", 0), ("train", 1), ("validation", 0)):
        live = LiveSource(
            Prepared(tmp_path / "prepared").split(split), vocabulary, exact_count, 3, buckets=buckets,
            stream=VALIDATION if split == "validation" else None, trunk=model.eval().requires_grad_(False), layer=2, taps=taps,
            dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
        )  # fmt: skip
        cached = CachedSource(shards, split, buckets)
        assert torch.equal(cached.padded, live.padded)
        for rows in live.padded.argsort(stable=True).split(7):
            compared += same(at(cached, rows, draw), at(live, rows, draw))
    assert compared == 8 + 8 + 2 and len(shards.index["shards"]) > 3
