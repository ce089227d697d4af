"""The bound on an answer's nll: enumeration of all masks equals the mean of samples, and a row's masks are its own."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.inference.likelihood import Likelihood, masks, standard_error, total

LENGTH = 4
RESPONSE = torch.tensor([[False, True, True, True, True, False]])


def losses(masked):
    """Of a made-up model: what is hidden is harder to tell the more is hidden, and differs from place to place."""
    table = torch.tensor([0.0, 1.0, 0.3, 2.0, 0.7, 0.0])
    return (table * masked.sum(1, keepdim=True) ** 1.5)[masked]


def enumerated():
    """The bound, from every mask."""
    places = RESPONSE[0].nonzero()[:, 0].tolist()
    bound = 0.0
    for count in range(1, LENGTH + 1):
        chosen = list(combinations(places, count))
        for places_masked in chosen:
            masked = torch.zeros_like(RESPONSE)
            masked[0, list(places_masked)] = True
            bound += float(losses(masked).sum()) * LENGTH / count / len(chosen) / LENGTH
    return bound


def estimates(uids, samples, seed=0):
    response = RESPONSE.expand(len(uids), -1)
    drawn = list(masks(response, torch.tensor(uids), seed, samples))
    return torch.stack([total(losses(masked), masked, weights) for masked, weights in drawn], 1)


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_samples_average_to_the_enumeration(samples):
    found = estimates(range(3000), samples)
    error = standard_error(found)
    assert found.shape == (3000, samples) and found.dtype == torch.float64
    assert float(found.mean()) == pytest.approx(enumerated(), abs=4 * error) and error < 0.02 * enumerated()


def test_counts_are_stratified():
    """With as many samples as tokens every count comes once, wherever an answer's samples begin."""
    for uid in range(20):
        drawn = [int(masked.sum()) for masked, _ in masks(RESPONSE, torch.tensor([uid]), 0, LENGTH)]
        assert sorted(drawn) == [1, 2, 3, 4]


def test_stratified_samples_have_less_error_than_is_told():
    """The told error takes samples for independent; over many repetitions the spread of their mean is smaller."""
    found = estimates(range(2000), 4)
    assert float(found.mean(1).std()) < 0.8 * float((found.var(1).mean() / 4).sqrt())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6), st.integers(0, 5), st.integers(2, 4))
def test_a_row_has_its_own_masks_whatever_stands_beside_it(uids, seed, samples):
    together = estimates(uids, samples, seed)
    assert torch.equal(together, torch.cat([estimates([uid], samples, seed) for uid in uids]))


def test_masks_lie_in_the_answer_and_weigh_it_whole():
    for masked, weights in masks(RESPONSE, torch.tensor([3]), 0, 5):
        assert not (masked & ~RESPONSE).any() and float(weights.sum()) == pytest.approx(LENGTH)
        assert torch.equal(weights > 0, masked)


def test_the_seed_decides():
    assert not torch.equal(estimates(range(9), 3, seed=0), estimates(range(9), 3, seed=1))


@pytest.mark.parametrize("sizes", [(0, 2), (1, 1)])
def test_too_few_are_refused(sizes):
    with pytest.raises(ValueError, match="items must be at least 1 and samples at least 2, got"):
        Likelihood(*sizes)
