"""The area under a curve of accuracy over parallelism, against a sum written out point by point, and settings that are told."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.inference.answers import Answers
from components.inference.approximate_prefix import approximate_prefix
from components.inference.parallelism import Parallelism, accuracy_under_parallelism
from components.inference.revising import least_probable
from components.inference.sampling import Sampler


def plain(points, best):
    """The definition, in the order of parallelism, in Python floats."""
    points = sorted(points, key=lambda point: point[0])
    counting = [(rate, height) for rate, height in points if height >= points[0][1] - 5]

    def weighted(height):
        return height * min(1.0, math.exp(-3 * (1 - height / best))) if best else 0.0

    area = counting[0][0] * counting[0][1]
    for i in range(1, len(counting)):
        (before, low), (rate, height) = counting[i - 1], counting[i]
        area += (rate - before) * (weighted(low) + weighted(height)) / 2
    return area


def aup(points, best):
    rates, heights = torch.tensor(points, dtype=torch.float64).T
    return float(accuracy_under_parallelism(rates, heights, torch.tensor(best, dtype=torch.float64)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.5, 99), st.floats(0, 100)), min_size=1, max_size=7, unique_by=lambda point: point[0]),
    st.floats(0, 100),
)
def test_the_area_is_that_of_the_definition_whatever_the_order(points, more):
    best = max(max(height for _, height in points), more)
    assert aup(points, best) == pytest.approx(plain(points, best)) == aup(points[::-1], best)


@pytest.mark.parametrize(
    ("points", "best", "area"),
    [
        ([(1, 80)], 80, 80),
        ([(1, 80), (2, 80), (4, 80)], 80, 4 * 80),  # nothing is lost: the plain area
        ([(1, 80), (2, 78), (4, 70)], 80, 80 + (80 + 78 * math.exp(-3 * 0.025)) / 2),  # the third is more than 5 below the first
        ([(1, 80), (2, 60), (4, 80)], 80, 80 + 3 * 80),  # what counts is joined over what does not
        ([(2, 40), (4, 40)], 80, 80 + 2 * 40 * math.exp(-1.5)),  # another method is twice as good
        ([(1, 50), (3, 90)], 90, 50 + 2 * (90 + 50 * math.exp(-3 * 4 / 9)) / 2),
        ([(1, 0), (8, 0)], 0, 0),
    ],
)
def test_areas_by_hand(points, best, area):
    assert aup(points, best) == pytest.approx(area) == plain(points, best)


def test_curves_side_by_side_are_each_their_own():
    rates = torch.tensor([[[1.0, 2, 4], [4.0, 2, 1]], [[1.0, 3, 9], [2.0, 2, 2]]])
    heights = torch.tensor([[[80.0, 79, 60], [80.0, 60, 82]], [[10.0, 20, 30], [7.0, 1, 2]]])
    best = torch.tensor([[82.0, 90.0], [30.0, 100.0]])
    areas = accuracy_under_parallelism(rates, heights, best)
    for i in range(2):
        for j in range(2):
            points = list(zip(rates[i, j].tolist(), heights[i, j].tolist(), strict=True))
            assert float(areas[i, j]) == pytest.approx(plain(points, float(best[i, j])), rel=1e-5)


def test_every_decode_is_listed_for_the_plan():
    settings = Parallelism(items=9, passes=(4, 1), split="x", sampler=Sampler(guidance=1.0), others={"b": Sampler()})
    assert settings.decodes() == [("x", 2, 9), ("x", 8, 9), ("x", 1, 9), ("x", 4, 9)]
    assert list(settings.samplers) == ["plain", "b"] and settings.passes == [1, 4]


@pytest.mark.parametrize(
    ("given_settings", "told"),
    [
        ({"items": 0}, "items must be positive and passes different positive numbers, got 0 items"),
        ({"passes": ()}, "passes different positive numbers"),
        ({"passes": (1, 0)}, r"got 64 items and \[1, 0\]"),
        ({"passes": (2, 4, 2)}, r"got 64 items and \[2, 4, 2\]"),
        ({"others": {"plain": Sampler()}}, "others: 'plain' is the curve of sampler"),
        ({"others": {"warm": Sampler(temperature=0.5)}}, "sampler 'warm' takes the likeliest tokens .* got 0.5 and None"),
        ({"sampler": Sampler(steps=4)}, "sampler 'plain' .* temperature 0 and steps None, got 0.0 and 4"),
        ({"sampler": Sampler(blocks=3), "passes": (3, 4)}, "steps 4 and blocks 3"),
        ({"others": {"r": Sampler(revise=least_probable, revisions=0)}}, "revisions must be at least 1"),
        ({"results": Answers(prefix=approximate_prefix)}, "passes read everything: expected prefix None, got approximate_prefix"),
    ],
)
def test_settings_that_do_not_fit_are_told(given_settings, told):
    with pytest.raises(ValueError, match=told):
        Parallelism(**given_settings)


def test_results_are_read_by_the_patterns_of_answers():
    assert Parallelism(results=Answers(items=1)).results.extracted("#### 5") == {"strict": "5", "flexible": "5"}
