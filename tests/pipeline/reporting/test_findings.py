"""Findings good and bad, from handmade metrics."""

import pytest

from pipeline.reporting.findings import findings
from tests.support.handmade import depth, pair, restart, value


@pytest.mark.parametrize(
    ("exact", "half", "verdict"), [(0.5, 0.1, "better"), (-0.5, 0.1, "worse"), (0.05, 0.1, "not distinguishable")]
)
def test_a_finding_judges_each_difference_on_exact(models, exact, half, verdict):
    differences = {"a - b": pair(exact, 0.0, half)}
    assert findings("test", models, differences)[0].startswith(f"a - b: {verdict} on test exact (")


@pytest.mark.parametrize(("nll", "verdict"), [(-0.5, "better"), (0.5, "worse"), (0.0, "not distinguishable")])
def test_a_finding_judges_on_nll_where_nobody_is_exact(models, nll, verdict):
    """Lower is better."""
    for name in ("frozen", "warmup"):
        models[name]["exact"] = value(0.01)
    assert findings("test", models, {"a - b": pair(0.0, nll)})[0].startswith(f"a - b: {verdict} on test nll (")


@pytest.mark.parametrize(
    ("by_step", "line"),
    [
        ((1.0, 0.75, 0.5), "warmup: nll falls with every recursion step"),
        ((1.0, 0.5, 0.6), "warmup: more steps are not always better"),
    ],
)
def test_a_finding_says_whether_steps_help(models, by_step, line):
    models["warmup"]["nll_by_step"] = [value(x) for x in by_step]
    assert findings("test", models, {}) == [line]  # the frozen backbone has one step: nothing to say


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (depth(64, 0.5, 1.0), ["warmup: 64 recursion steps are worse than the trained 4 on test exact (-.250 [-.260, -.240])"]),
        (depth(16, 0.9, 0.2), ["warmup: 16 recursion steps are better than the trained 4 on test exact (.150 [.140, .160])"]),
        (depth(64, 0.5, 1.0, half=0.3), []),
        (depth(1, 0.5, 1.0), []),
    ],
)
def test_a_finding_says_whether_more_steps_than_trained_help_or_hurt(models, at, said):
    models["warmup"]["depths"] = sorted([depth(4, 0.75, 0.5), at], key=lambda row: row["steps"])
    assert [line for line in findings("test", models, {}) if "trained" in line] == said


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (
            restart(16, 0.7),
            ["16 restarts chosen from by change are better than one recursion on test exact (.200 [.190, .210])"],
        ),
        (
            restart(8, 0.4),
            ["8 restarts chosen from by change are worse than one recursion on test exact (-.100 [-.110, -.090])"],
        ),
        (restart(16, 0.7, half=0.3), []),
        (restart(1, 0.5), []),
    ],
)
def test_a_finding_says_whether_most_restarts_help_or_hurt(models, most, said):
    models["warmup"]["breadth"] = {"change": [restart(2, 0.9), most], "majority": [restart(1, 0.5)]}
    assert [line for line in findings("test", models, {}) if "restarts" in line] == [f"warmup: {line}" for line in said]


def test_a_finding_on_depth_goes_by_nll_where_nobody_is_exact(models):
    for name in ("frozen", "warmup"):
        models[name]["exact"] = value(0.01)
    models["warmup"]["depths"] = [depth(4, 0.75, 0.5), depth(64, 0.75, 0.4)]
    said = "warmup: 64 recursion steps are better than the trained 4 on test nll (-.100 [-.110, -.090])"
    assert said in findings("test", models, {})
