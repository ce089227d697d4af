"""Sums of one tree: the same bits however leaves are shared, and few sums held at a time."""

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.training.summation import PairwiseSum, pairwise


def leaves(n, seed=0, width=50):
    """Numbers of very different sizes: their sum depends on its order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) * 10 ** (6 * torch.rand(n, width, generator=generator) - 3)


def tree(parts):
    total = PairwiseSum()
    for part in parts:
        total.add([part.clone()])
    (found,) = total.result()
    return found


def shared(parts, processes):
    """As processes do: each adds up its share, the shares are added up."""
    return pairwise(torch.stack([tree(share) for share in parts.chunk(processes)]))


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_eight_leaves_give_the_same_bits_for_any_number_of_processes(processes):
    parts = leaves(8)
    assert torch.equal(shared(parts, processes), tree(parts))
    assert not torch.equal(tree(parts), sum(parts.unbind()))  # else any order would do


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**31))
def test_shares_of_a_power_of_two_give_the_same_bits(processes, share, seed):
    parts = leaves(processes * share, seed)
    assert torch.equal(shared(parts, processes), tree(parts))


def halves(numbers):
    """The tree in plain Python: full halves first."""
    if len(numbers) == 1:
        return numbers[0]
    half = 1 << (len(numbers) - 1).bit_length() - 1
    return halves(numbers[:half]) + halves(numbers[half:])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_it_is_the_sum_by_halves_and_close_to_the_exact_one(n, seed):
    parts = leaves(n, seed, width=3)
    found = tree(parts)
    assert torch.equal(found, halves(list(parts.unbind())))
    exact = [math.fsum(column) for column in parts.T.tolist()]
    bound = 1.2e-7 * (math.log2(n) + 1) * parts.abs().double().sum(0)
    assert ((found.double() - torch.tensor(exact).double()).abs() <= bound).all()


def test_every_tensor_of_a_list_is_added_up():
    total = PairwiseSum()
    for k in range(5):
        total.add([torch.full((2, 3), float(k)), torch.tensor(1.0)])
    grid, count = total.result()
    assert torch.equal(grid, torch.full((2, 3), 10.0)) and count.item() == 5


@pytest.mark.parametrize("n", [1, 2, 7, 8, 64, 100])
def test_few_sums_are_held_at_a_time(n):
    total, alive = PairwiseSum(), []
    for added in range(1, n + 1):
        leaf = torch.ones(2)
        alive.append(weakref.ref(leaf))
        total.add([leaf])
        del leaf
        held = sum(one() is not None for one in alive)
        assert held <= math.log2(added) + 1


def test_pairwise_leaves_its_parts_alone():
    parts = leaves(4)
    before = parts.clone()
    pairwise(parts)
    assert torch.equal(parts, before)
