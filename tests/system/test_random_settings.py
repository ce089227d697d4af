"""Random settings end well: configure refuses them in a line, or the stages that they change take their steps.

`python -m tests.support.random_settings` draws as many as one likes.
"""

import gin
import pytest

from components.ranges import PositiveInt, Range, Share
from tests.support import random_settings
from tests.support.random_settings import Case, Draw, outcome, uncounted

WELL = {"refused", "ran", "diverged"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Smoke with few steps, run through every stage. Read only."""
    with uncounted():
        made = random_settings.base(tmp_path_factory.mktemp("random") / "finished")
    yield made
    gin.clear_config()


def ends(finished, tmp_path, numbers, **how):
    """How the settings of these numbers end, and what is amiss with them."""
    kinds, amiss = [], []
    for number in numbers:
        end = outcome(case := Draw(number).case(), finished, tmp_path / str(number), **how)
        kinds.append(end.kind)
        amiss += [] if end.kind in WELL else [(number, case.bindings, end)]
    return kinds, amiss


def test_a_draw_is_a_function_of_its_seed():
    cases = [Draw(seed).case() for seed in range(20)]
    assert [repr(Draw(seed).case().bindings) for seed in range(20)] == [repr(case.bindings) for case in cases]  # nan is drawn too
    assert len({case.text for case in cases}) >= 18 and len({case.stage for case in cases}) >= 5


@pytest.mark.parametrize(
    ("limit", "just", "never"), [(Range(ge=1), 0, 1), (Range(gt=0, lt=1), 0, 0.5), (Range(ge=0, le=1), 2, 1), (Range(lt=3), 3, 2)]
)
def test_what_lies_beyond_a_range_is_outside_of_it(limit, just, never):
    beyond = list(random_settings._beyond(limit))
    assert just in beyond and never not in beyond and not any(limit.holds(value) for value in beyond)


@pytest.mark.parametrize(
    ("kind", "limit"), [(PositiveInt, Range(ge=1)), (Share, Range(ge=0, le=1)), (PositiveInt | None, Range(ge=1))]
)
def test_most_of_what_is_drawn_within_a_range_is_in_it(kind, limit):
    draw = Draw(0)
    values = [draw.inside("warmup", "x", kind) for _ in range(400)]
    numbers = [value for value in values if value is not None]
    assert sum(map(limit.holds, numbers)) > 0.9 * len(numbers) and len(set(numbers)) >= 8


def test_a_setting_without_fault_runs_and_one_with_a_fault_is_refused(finished, tmp_path):
    with uncounted():
        ran = outcome(Case("joint", {"joint": {"loop.fit.clip": 0.5}}), finished, tmp_path / "ran")
        whole = outcome(Case("extract", {"common": {"DRAWS": 1}}), finished, tmp_path / "common")
        refused = outcome(Case("joint", {"joint": {"loop.fit.clip": -1}}), finished, tmp_path / "refused")
    assert (ran.kind, ran.changed) == ("ran", ("joint",)) and (whole.kind, whole.changed) == ("ran", ("extract",))
    assert refused.kind == "refused" and "loop.fit.clip must be at least 0, got -1" in refused.told


def test_random_settings_are_resolved_or_refused_in_a_line(finished, tmp_path):
    kinds, amiss = ends(finished, tmp_path, range(20), steps=False)
    assert not amiss and kinds.count("refused") >= 5 and kinds.count("ran") >= 5


@pytest.mark.slow
def test_random_settings_that_configure_takes_run(finished, tmp_path):
    with uncounted():
        kinds, amiss = ends(finished, tmp_path, range(1000, 1200))
    assert not amiss and kinds.count("ran") >= 60


@pytest.mark.slow
def test_random_settings_that_configure_takes_go_through_the_whole_pipeline(finished, tmp_path):
    kinds, amiss = ends(finished, tmp_path, range(1000, 1012), whole=True)
    assert not amiss and kinds.count("ran") >= 3
