"""The report's section on health: what the diagnosis says of the phases whose curves and metrics the report reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.diagnosis import diagnosis, recorded
from pipeline.diagnosis.finding import Finding
from pipeline.models.model_folder import PHASES

BEYOND = (
    "Looked for in the curves and validations of {runs}, and in the evaluation. `python -m stages doctor` also reads settings and "
    "weights: clipped gradients, masks that come back, the size of updates.\n"
)


def findings(curve: Mapping[str, Any], trained: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Finding]:
    """List what is wrong with the phases and their evaluation.

    Args:
        curve: of each phase that took steps.
        trained: ``metrics.json`` of each phase.
        metrics: of the evaluation.
    """
    runs = {PHASES.get(name, name): (columns, trained[name]) for name, columns in curve.items()}
    return diagnosis.of_all({name: recorded.finished(name, *runs[name]) for name in sorted(runs, key=recorded.in_order)}, metrics)


def section(seen: Sequence[Finding], curve: Mapping[str, Any]) -> str:
    """Write the findings as markdown, and where they were looked for."""
    lines = [f"- **{finding.where}: {finding.name}**: {finding.evidence}. {finding.mend}.\n" for finding in seen]
    names = sorted((PHASES.get(name, name) for name in curve), key=recorded.in_order)
    return "".join(lines or ["No finding.\n"]) + "\n" + BEYOND.format(runs=", ".join(names))
