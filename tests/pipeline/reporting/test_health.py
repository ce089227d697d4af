"""The section on health: findings of the phases that a report reads, in words of the diagnosis."""

import pytest

from pipeline.reporting import health
from tests.support.handmade import retained
from tests.support.made_runs import HEALTHY, columns, falling, validations


def phases(**changed):
    """Curves and metrics of a backbone, a warmup with changes, and a control."""
    curve = {"backbone": columns(), "warmup": columns(**changed), "control_warmup": columns()}
    return curve, {name: {"steps": 200, "validation": HEALTHY} for name in curve}


def test_nothing_is_wrong_with_phases_that_are_well(models):
    curve, trained = phases()
    trained["control_warmup"]["validation"] = validations(0.9, 0.8)
    seen = health.findings(curve, trained, {"models": models})
    text = health.section(seen, curve)
    assert seen == [] and text.startswith(
        "No finding.\n\nLooked for in the curves and validations of backbone, warmup, controls/warmup"
    )


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"gate/context": falling(0.5, 0.2)}, "- **warmup: gate dead**: gate/context ends at 0.21, healthy is 0.3 to 0.7. Leave"),
        (
            {"gate/context": falling(0.5, 0.9)},
            "- **warmup: gate saturated**: gate/context ends at 0.88, healthy is 0.3 to 0.7. Lower",
        ),
        ({"confidence": 0.01}, "- **warmup: confidence uniform**: mean confidence ends at 0.010, it was 0.010 at first. Near 0"),
    ],
)
def test_each_finding_is_a_line_with_its_mend(models, changed, line):
    curve, trained = phases(**changed)
    (said, *_) = health.section(health.findings(curve, trained, {"models": models}), curve).splitlines()
    assert said.startswith(line) and said.endswith(".")


def test_a_control_is_compared_with_the_phase_that_it_continues(models):
    curve, trained = phases()
    trained["control_warmup"]["validation"] = validations(1.1, 1.0)
    (finding,) = health.findings(curve, trained, {"models": models})
    assert (finding.where, finding.name) == ("controls/warmup", "control not trained properly")


@pytest.mark.parametrize(("lost", "told"), [(0.3, True), (0.05, False), (-0.3, False)])
def test_what_was_clearly_forgotten_is_said(models, lost, told):
    seen = health.findings({}, {}, {"models": retained(models, lost)})
    said = ["nll of prompts' tokens is 0.300 [0.200, 0.400] above the frozen backbone's"]
    assert [finding.evidence for finding in seen] == said * told
