"""What a reader of the report should know before believing its table; each line is computed, good or bad."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pipeline.reporting.figures import Curves
from pipeline.reporting.intervals import is_clear
from pipeline.reporting.markdown import cell
from pipeline.reporting.tables import METRICS, headline_metric


def findings(headline: str, models: Mapping[str, Any], differences: Mapping[str, Any], curve: Mapping[str, Curves]) -> list[str]:
    """Say of each paired difference what it shows, whether steps help, what was forgotten, and which slots close or take over.

    Args:
        headline: the measure that models are compared on.
        models: metrics of each model.
        differences: paired differences by pair and measure.
        curve: of each phase that took steps.
    """
    lines = []
    metric = headline_metric(models)
    for pair, by_measure in differences.items():
        value = by_measure[headline][metric]
        better = (value["mean"] > 0) == (metric == "exact")
        verdict = ("better" if better else "worse") if is_clear(value) else "not distinguishable"
        lines.append(f"{pair}: {verdict} on {headline} {METRICS[metric]} ({cell(value)})")
    for name, measured in models.items():
        steps = [v["mean"] for v in measured["nll_by_step"]]
        if len(steps) > 1:
            falling = all(b <= a for a, b in pairwise(steps))
            lines.append(f"{name}: nll falls with every recursion step" if falling else f"{name}: more steps are not always better")
    for name, measured in models.items():
        lost = measured["forgetting"]["minus_frozen"]["prompt_nll"] if "forgetting" in measured else None
        if lost and is_clear(lost) and lost["mean"] > 0:
            lines.append(f"{name}: has forgotten, nll of prompts' tokens is {cell(lost)} above the frozen backbone's")
    for name, columns in curve.items():
        for gate in (k for k in columns if k.startswith("gate/")):
            if not 0.3 <= (value := columns[gate][-1]) <= 0.7:
                becoming = "closing" if value < 0.3 else "taking over"
                lines.append(f"{name}: {gate} ends at {value:.2f}, outside 0.3..0.7: this slot is {becoming}")
    return lines
