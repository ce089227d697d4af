"""The diagnosis: every rule over every run. What no file tells is not seen: how confidence spreads over tokens, and clocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.diagnosis import comparison, data, losses, rates, recorded, recursion, slots, updates
from pipeline.diagnosis.finding import Finding
from pipeline.diagnosis.training_run import Evaluation, Rule, Run

RULES: tuple[Rule, ...] = (
    losses.diverging, losses.oscillating, rates.too_high, rates.too_low, rates.clipped, losses.overfitting, data.masks,
    data.starving, recursion.recursion, updates.updates, slots.slots, slots.gates, slots.confidence,
)  # fmt: skip
SYMPTOMS = (
    losses.DIVERGING, losses.OSCILLATING, rates.HIGH, rates.NOTHING, rates.CUT, losses.OVERFITTING, data.REUSED, data.STARVING,
    recursion.UNUSED, recursion.NO_BETTER, updates.VANISHING, updates.EXPLODING, slots.COLLAPSED, slots.UNORDERED, slots.DEAD,
    slots.SATURATED, slots.UNIFORM, comparison.UNTRAINED, comparison.FORGOTTEN,
)  # fmt: skip


def of_run(run: Run) -> list[Finding]:
    """List what is wrong with one run, whether it has ended or goes on."""
    return list(losses.broken(run)) or [finding for rule in RULES for finding in rule(run)]


def of_all(runs: Mapping[str, Run], evaluation: Evaluation) -> list[Finding]:
    """List what is wrong with each run by itself, and with the runs beside each other.

    Args:
        runs: by their names, in their order.
        evaluation: metrics of the models; empty where nothing was evaluated.
    """
    alone = [finding for run in runs.values() for finding in of_run(run)]
    return [*alone, *comparison.controls(runs), *comparison.forgetting(evaluation)]


def as_markdown(folder: Path, stage: str) -> str:
    """Write what is wrong with the runs in a stage's folder, or in a copy of it, as a list; "" if nothing is."""
    runs = {name: recorded.run_at(place, name, folder) for name, place in recorded.below(folder, stage).items()}
    return "".join(f"- {finding}\n" for finding in of_all({name: run for name, run in runs.items() if run.steps}, {}))


def as_text(findings: Sequence[Finding], runs: Mapping[str, Run]) -> str:
    """Write findings as lines, and which runs were looked at."""
    seen = ", ".join(f"{run.name} ({run.steps} steps{'' if run.ended else ', not ended'})" for run in runs.values())
    return "\n".join(
        [*map(str, findings), f"{len(findings) or 'no'} finding{'s' * (len(findings) != 1)} in {seen or 'runs of no steps'}"]
    )
