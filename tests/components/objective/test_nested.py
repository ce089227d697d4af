"""Nested draws: each masks a part of the one before, and a group masks as much as independent draws do."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from components import noise
from components.objective.masking import bernoulli, chunks, exact_count, fixed_ratio, often_full
from components.objective.nested import Nested, check_draws, draw, passes_of, single

MASKINGS = {"exact_count": exact_count, "often_full": often_full, "chunks": partial(chunks, size=2), "bernoulli": bernoulli}
every_masking = pytest.mark.parametrize("masking", MASKINGS.values(), ids=MASKINGS)
every_number = pytest.mark.parametrize("passes", [2, 3, 4])
ROWS, SEQ, SEED = 40, 12, 5
RESPONSE = (torch.arange(SEQ) >= 3) & (torch.arange(SEQ) < 5 + torch.arange(ROWS)[:, None] % 8)
UID = torch.arange(ROWS) + 100


def drawn(masking, number):
    return draw(masking, RESPONSE, SEED, torch.full((ROWS,), number), UID)


def plain(masking, number):
    return masking(RESPONSE, noise.uniform(SEED, number, UID, SEQ + 1))


@every_masking
@every_number
def test_each_draw_of_a_group_masks_a_part_of_the_one_before(masking, passes):
    nested = Nested(masking, passes)
    for group in range(3):
        masks = [drawn(nested, passes * group + place)[0] for place in range(passes)]
        assert all((after <= before).all() for before, after in pairwise(masks))
        assert (masks[-1] < masks[0]).any() and (masks[0] <= RESPONSE).all()


@pytest.mark.parametrize("masking", [exact_count, often_full], ids=["exact_count", "often_full"])
@every_number
def test_a_group_masks_as_many_tokens_as_independent_draws_do(masking, passes):
    nested = Nested(masking, passes)
    counts = torch.stack([drawn(nested, passes + place)[0].sum(1) for place in range(passes)])
    independent = torch.stack([plain(masking, passes + place)[0].sum(1) for place in range(passes)])
    assert torch.equal(counts, independent.sort(0, descending=True).values)


@every_number
def test_weights_are_those_of_the_draw_that_masks_as_much(passes):
    for place in range(passes):
        masked, weights = drawn(Nested(exact_count, passes), place)
        torch.testing.assert_close(weights, masked / masked.sum(1, keepdim=True).float())


def test_rows_of_several_draws_come_together():
    nested, numbers = Nested(exact_count, 3), torch.arange(ROWS) % 7
    masked, weights = draw(nested, RESPONSE, SEED, numbers, UID)
    for number in range(7):
        rows = numbers == number
        assert torch.equal(masked[rows], drawn(nested, number)[0][rows])
        assert torch.equal(weights[rows], drawn(nested, number)[1][rows])


@every_masking
def test_what_is_not_nested_is_drawn_as_it_always_was(masking):
    for number in (0, 1, 7):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(drawn(masking, number), plain(masking, number), strict=True))


@every_masking
def test_a_nested_masking_called_by_itself_is_the_masking(masking):
    nested, numbers = Nested(masking, 2), noise.uniform(0, 0, UID, SEQ + 1)
    assert torch.equal(nested(RESPONSE, numbers)[0], masking(RESPONSE, numbers)[0])
    assert single(nested) is masking and single(masking) is masking
    assert passes_of(nested) == 2 and passes_of(masking) == 1


def test_of_equal_masks_the_first_comes_first():
    same = Nested(partial(fixed_ratio, ratio=0.5), 2)
    assert torch.equal(drawn(same, 0)[0], drawn(same, 1)[0])


@pytest.mark.parametrize(("masking", "draws"), [(exact_count, 3), (Nested(), 2), (Nested(passes=3), 6), (Nested(passes=4), None)])
def test_whole_groups_of_draws_are_right(masking, draws):
    check_draws(masking, draws)


@pytest.mark.parametrize(("passes", "draws"), [(2, 1), (2, 3), (3, 2), (4, 6)])
def test_a_part_of_a_group_is_an_error(passes, draws):
    with pytest.raises(ValueError, match=rf"draws nested by {passes} .* a multiple of it, got {draws} \(DRAWS\)"):
        check_draws(Nested(passes=passes), draws)
