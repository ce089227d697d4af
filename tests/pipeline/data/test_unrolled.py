"""Unrolled passes: the nested draws of the same rows in turn, cached as live, and draws that are not nested refused."""

from functools import partial

import pytest
import torch

from components.objective.masking import exact_count
from components.objective.nested import Nested
from pipeline.data import sources
from pipeline.data.batches import VALIDATION, CachedSource, LiveSource
from pipeline.data.loading import TrainLoader
from pipeline.data.reader import ShardReader
from pipeline.data.unrolled import Unrolled
from pipeline.errors import ConfigError
from tests.pipeline.conftest import write_shards

ROWS = torch.tensor([7, 2, 11])
every_number = pytest.mark.parametrize("passes", [2, 3, 4])


@pytest.fixture
def live(rows, vocabulary):
    """``live(passes, draws)``: rows with masks that are nested by as many."""

    def live(passes=2, draws=None, **settings):
        return LiveSource(rows(16), vocabulary, Nested(exact_count, passes), 0, draws=draws, **settings)

    return live


@pytest.fixture
def stored(tmp_path, rows):
    def stored(passes, draws):
        nested = {"nested": passes} if passes > 1 else {}
        return CachedSource(ShardReader(write_shards(tmp_path / f"{passes}_{draws}", rows(16), draws, **nested)), "train")

    return stored


@every_number
def test_passes_reveal_tokens_and_hide_none(live, passes):
    batch = Unrolled(live(passes), passes).batch(torch.arange(16), torch.zeros(16, dtype=torch.int64))
    assert len(batch.passes) == passes and all(each.later is None for each in batch.later)
    for before, after in zip(batch.passes, batch.later, strict=False):
        assert (after.masked <= before.masked).all() and torch.equal(before.targets, after.targets)
        assert torch.equal(after.tokens, torch.where(after.masked, 100, after.targets))
    assert (batch.later[-1].masked < batch.masked).any()


@every_number
def test_epochs_walk_the_groups_of_draws(live, passes):
    source = live(passes, draws=2 * passes)
    unrolled = Unrolled(source, passes)
    epochs = torch.tensor([0, 1, 2])
    batch = unrolled.batch(ROWS, epochs)
    for place, each in enumerate(batch.passes):
        single = source.batch(ROWS, torch.tensor([place, passes + place, place]))
        assert torch.equal(each.masked, single.masked) and torch.equal(each.weights, single.weights)


@pytest.mark.parametrize(("passes", "draws"), [(2, 2), (2, 4), (3, 3), (4, 4)])
def test_stored_draws_are_read_in_turn(stored, passes, draws):
    unrolled = Unrolled(stored(passes, draws), passes)
    for epoch in range(3):
        batch = unrolled.batch(ROWS, torch.full_like(ROWS, epoch))
        drawn = [each.hidden[:, 0, 0].long().tolist() for each in batch.passes]
        assert drawn == [[1000 * ((passes * epoch + place) % draws) + row for row in ROWS.tolist()] for place in range(passes)]


def test_a_step_has_as_many_rows_as_without(live):
    source = live()
    steps = TrainLoader(Unrolled(source, 2), 4, 0).steps(3, 1)
    plain = TrainLoader(source, 4, 0).steps(3, 1)
    for _ in range(4):
        (batch,), (single,) = next(steps), next(plain)
        assert torch.equal(batch.targets, single.targets) and len(batch.passes) == 2


@pytest.mark.parametrize("draws", [2, 4])
def test_validation_is_masked_as_without(rows, vocabulary, live, draws):
    plain = LiveSource(rows(16), vocabulary, exact_count, 0, stream=VALIDATION)
    nested = live(draws, stream=VALIDATION)
    at = torch.arange(16), torch.zeros(16, dtype=torch.int64)
    assert torch.equal(plain.batch(*at).masked, nested.batch(*at).masked) and nested.nested == 1


@pytest.mark.parametrize(("nested", "passes"), [(1, 2), (2, 3), (4, 2), (3, 4)])
def test_draws_that_are_not_nested_by_as_many_are_refused(stored, nested, passes):
    with pytest.raises(ConfigError, match=rf"reads {passes} nested mask draws together, .* extract are nested by {nested}; set "):
        Unrolled(stored(nested, 12), passes)


def test_the_source_unrolls_training_alone(live):
    opened = partial(sources.unrolled, backbone=None, states=lambda split, backbone: live(3), passes=3)
    assert isinstance(opened("train"), Unrolled) and isinstance(opened("validation"), LiveSource)


def test_it_tells_where_it_comes_from(stored):
    source = stored(2, 2)
    unrolled = Unrolled(source, 2)
    for name in ("layer", "padded", "fingerprint", "stage"):
        assert getattr(unrolled, name) is getattr(source, name)
    assert len(unrolled) == 16
