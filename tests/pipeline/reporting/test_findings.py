"""Findings good and bad, from handmade metrics."""

import pytest

from pipeline.reporting.findings import findings
from tests.support.handmade import pair, retained, value


@pytest.mark.parametrize(
    ("exact", "half", "verdict"), [(0.5, 0.1, "better"), (-0.5, 0.1, "worse"), (0.05, 0.1, "not distinguishable")]
)
def test_a_finding_judges_each_difference_on_exact(models, exact, half, verdict):
    differences = {"a - b": pair(exact, 0.0, half)}
    assert findings("test", models, differences, {})[0].startswith(f"a - b: {verdict} on test exact (")


@pytest.mark.parametrize(("nll", "verdict"), [(-0.5, "better"), (0.5, "worse"), (0.0, "not distinguishable")])
def test_a_finding_judges_on_nll_where_nobody_is_exact(models, nll, verdict):
    """Lower is better."""
    for name in ("frozen", "warmup"):
        models[name]["exact"] = value(0.01)
    assert findings("test", models, {"a - b": pair(0.0, nll)}, {})[0].startswith(f"a - b: {verdict} on test nll (")


@pytest.mark.parametrize(
    ("by_step", "line"),
    [
        ((1.0, 0.75, 0.5), "warmup: nll falls with every recursion step"),
        ((1.0, 0.5, 0.6), "warmup: more steps are not always better"),
    ],
)
def test_a_finding_says_whether_steps_help(models, by_step, line):
    models["warmup"]["nll_by_step"] = [value(x) for x in by_step]
    assert findings("test", models, {}, {}) == [line]  # the frozen backbone has one step: nothing to say


@pytest.mark.parametrize(
    ("last", "lines"),
    [
        (0.29, ["warmup: gate/context ends at 0.29, outside 0.3..0.7: this slot is closing"]),
        (0.71, ["warmup: gate/context ends at 0.71, outside 0.3..0.7: this slot is taking over"]),
        (0.5, []),
    ],
)
def test_a_finding_warns_of_gates_that_close_or_take_over(models, last, lines):
    curves = {"warmup": {"step": [0, 1], "gate/context": [0.5, last], "gate/confidence": [0.1, 0.6]}}
    assert findings("test", {"frozen": models["frozen"]}, {}, curves) == lines


@pytest.mark.parametrize(("lost", "told"), [(0.3, True), (0.05, False), (-0.3, False)])
def test_a_finding_tells_of_what_was_clearly_forgotten(models, lost, told):
    said = [line for line in findings("test", retained(models, lost), {}, {}) if "forgotten" in line]
    assert said == ["warmup: has forgotten, nll of prompts' tokens is .300 [.200, .400] above the frozen backbone's"] * told
