import itertools
import math

import pytest
import torch

from components.refiners.orthogonality import overlap


def pearson(xs, ys):
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return covariance / math.sqrt(sum((x - mx) ** 2 for x in xs) * sum((y - my) ** 2 for y in ys))


def plain_overlap(slots):
    """Mean over pairs of the mean squared correlation, one pair of channels at a time."""
    channels = [[slot[..., i].flatten().tolist() for i in range(slot.shape[-1])] for slot in slots.values()]
    pairs = []
    for a, b in itertools.combinations(channels, 2):
        squares = [pearson(x, y) ** 2 for x in a for y in b]
        pairs.append(sum(squares) / len(squares))
    return sum(pairs) / len(pairs)


def random_slots(widths=(4, 3, 2, 1), rows=(5, 7), seed=0):
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(*rows, 1, generator=g)
    return {str(i): shared + torch.randn(*rows, width, generator=g) for i, width in enumerate(widths)}


@pytest.mark.parametrize("widths", [(1, 1), (2, 5), (4, 3, 2, 1)])
def test_overlap_equals_a_double_loop_over_pearson_correlations(widths):
    slots = random_slots(widths)
    assert overlap(slots).item() == pytest.approx(plain_overlap(slots), rel=1e-4)


def test_identical_slots_of_one_channel_overlap_fully():
    one = torch.randn(6, 7, 1, generator=torch.Generator().manual_seed(0))
    assert overlap({"a": one, "b": one, "c": -3 * one + 2}).item() == pytest.approx(1.0)


def test_independent_noise_does_not_overlap():
    g = torch.Generator().manual_seed(0)
    assert overlap({name: torch.randn(100, 100, 8, generator=g) for name in "abcd"}).item() < 3e-4


def test_channels_correlated_within_one_slot_cost_nothing():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(100, 100, 1, generator=g).expand(100, 100, 3) for _ in range(2))
    assert overlap({"a": a, "b": b}).item() < 1e-3


def test_a_constant_slot_overlaps_with_nothing_and_has_a_finite_gradient():
    varying = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))
    constant = torch.zeros(6, 7, 2, requires_grad=True)
    value = overlap({"a": varying, "b": constant})
    (gradient,) = torch.autograd.grad(value, constant)
    assert value.item() == 0.0
    assert gradient.isfinite().all()


def test_descending_the_gradient_lowers_the_overlap():
    slots = {name: slot.requires_grad_() for name, slot in random_slots().items()}
    before = overlap(slots)
    gradients = torch.autograd.grad(before, list(slots.values()))
    assert all(g.abs().max() > 0 for g in gradients)
    moved = {name: slot - 0.5 * g for (name, slot), g in zip(slots.items(), gradients, strict=True)}
    assert overlap(moved) < before


def test_padding_is_left_out():
    generator = torch.Generator().manual_seed(0)
    slots = {"a": torch.randn(2, 5, 3, generator=generator), "b": torch.randn(2, 5, 2, generator=generator)}
    attention = torch.tensor([[True] * 5, [True, True, False, False, False]])
    kept = {name: value[attention][None] for name, value in slots.items()}
    assert overlap(slots, attention).item() == pytest.approx(overlap(kept).item(), rel=1e-4)
