"""What a reader of the report should know before believing its table; each line is computed, good or bad."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pipeline.reporting.intervals import is_clear
from pipeline.reporting.markdown import cell
from pipeline.reporting.tables import METRICS, headline_metric


def findings(headline: str, models: Mapping[str, Any], differences: Mapping[str, Any]) -> list[str]:
    """Say of each paired difference what it shows, whether steps help, and what more of them or restarts do.

    Args:
        headline: the measure that models are compared on.
        models: metrics of each model.
        differences: paired differences by pair and measure.
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
        for at in (at for at in measured.get("depths", ()) if not at["trained"] and is_clear(at["minus_trained"][metric])):
            better = (at["minus_trained"][metric]["mean"] > 0) == (metric == "exact")
            trained = next(row["steps"] for row in measured["depths"] if row["trained"])
            if at["steps"] > trained:
                verdict = f"{at['steps']} recursion steps are {'better' if better else 'worse'} than the trained {trained}"
                lines.append(f"{name}: {verdict} on {headline} {METRICS[metric]} ({cell(at['minus_trained'][metric])})")
    for name, measured in models.items():
        for rule, most in ((rule, rows[-1]) for rule, rows in measured.get("breadth", {}).items()):
            if is_clear(apart := most["minus_one"][metric]):
                better = "better" if (apart["mean"] > 0) == (metric == "exact") else "worse"
                verdict = f"{most['restarts']} restarts chosen from by {rule} are {better} than one recursion"
                lines.append(f"{name}: {verdict} on {headline} {METRICS[metric]} ({cell(apart)})")
    return lines
