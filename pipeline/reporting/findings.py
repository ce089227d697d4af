"""What a reader of the report should know before believing its table; each line is computed, good or bad."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.reporting.figures import Curves
from pipeline.reporting.markdown import cell
from pipeline.reporting.tables import METRICS, headline_metric


def findings(metrics: Mapping[str, Any], curve: Mapping[str, Curves], models: Sequence[str]) -> list[str]:
    """Each paired difference, whether steps help, what was forgotten, and slots that close or take over."""
    found = []
    headline = metrics["headline"]
    for pair, by_measure in metrics["differences"].items():
        key = headline_metric(metrics)
        value = by_measure[headline][key]
        clear = value["low"] > 0 or value["high"] < 0
        better = (value["mean"] > 0) == (key == "exact")
        verdict = ("better" if better else "worse") if clear else "not distinguishable"
        found.append(f"{pair}: {verdict} on {headline} {METRICS[key]} ({cell(value)})")
    for name in models:
        steps = [v["mean"] for v in metrics[name]["nll_by_step"]]
        if len(steps) > 1:
            falling = all(b <= a for a, b in pairwise(steps))
            found.append(f"{name}: nll falls with every recursion step" if falling else f"{name}: more steps are not always better")
    for name in models:
        lost = metrics[name].get("forgetting", {}).get("minus_frozen", {}).get("prompt_nll", {"low": 0.0})
        if lost["low"] > 0:
            found.append(f"{name}: has forgotten, nll of prompts' tokens is {cell(lost)} above the frozen backbone's")
    for name, columns in curve.items():
        for gate in (k for k in columns if k.startswith("gate/")):
            if not 0.3 <= (value := columns[gate][-1]) <= 0.7:
                becoming = "closing" if value < 0.3 else "taking over"
                found.append(f"{name}: {gate} ends at {value:.2f}, outside 0.3..0.7: this slot is {becoming}")
    return found
