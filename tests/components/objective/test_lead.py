"""Steps before the supervised ones: how many follows from the key alone, as often as the formula says."""

import math

import pytest

from components.noise import key
from components.objective.lead import RandomLead
from components.objective.objective import Objective

DRAWS = 3000


@pytest.mark.parametrize(("most", "share"), [(1, 1.0), (3, 1.0), (7, 0.5), (64, 0.3)])
def test_every_number_comes_as_often_as_its_chance(most, share):
    lead = RandomLead(most, share)
    drawn = [lead(key(0, step)) for step in range(DRAWS)]
    chances = {m: share * math.log((m + 1) / m) / math.log(most + 1) for m in range(1, most + 1)}
    for m, chance in {0: 1 - share, **chances}.items():
        deviation = math.sqrt(chance * (1 - chance) / DRAWS)
        assert abs(drawn.count(m) / DRAWS - chance) <= 4.5 * deviation, m
    assert lead.mean == pytest.approx(sum(m * chance for m, chance in chances.items())) and set(drawn) <= {0, *chances}


@pytest.mark.parametrize(("share", "none"), [(0.0, True), (1.0, False)])
def test_a_share_of_all_or_nothing_has_no_exception(share, none):
    lead = RandomLead(16, share)
    assert all((lead(key(1, step)) == 0) == none for step in range(500)) and (lead.mean == 0) == none


def test_a_model_of_one_step_has_none_that_could_come_before():
    assert Objective(1, lead=RandomLead()).lead is None and Objective(2, lead=RandomLead()).lead == RandomLead()


def test_the_number_is_the_keys_alone():
    one, other = RandomLead(), RandomLead()
    forwards = [one(key(3, step)) for step in range(50)]
    assert [other(key(3, step)) for step in reversed(range(50))] == forwards[::-1]
    assert forwards != [one(key(4, step)) for step in range(50)] and len(set(forwards)) > 5


@pytest.mark.parametrize("sizes", [(0, 0.5), (-1, 0.5), (8, -0.1), (8, 1.1), (8, math.nan)])
def test_what_is_no_number_of_steps_or_no_share_is_refused(sizes):
    with pytest.raises(ValueError, match=r"lead\.RandomLead needs most of at least 1 and a share within 0\.\.1, got"):
        RandomLead(*sizes)
