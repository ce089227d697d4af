"""Updates: how far a recursion step moves the states, measured in the states' own size."""

from collections.abc import Iterator

from pipeline.diagnosis.finding import Finding, Symptom
from pipeline.diagnosis.training_run import Run

SMALL = 0.01  # of the states' rms: smaller ones hardly reach the logits; presets that work end at .1 to .5
LARGE = 3.0  # of the states' rms: what the backbone said is a tenth of the squared states then

VANISHING = Symptom(
    "updates vanishing",
    f"the update's rms ends below {SMALL} of the states'",
    "Mend the confidence first where that is near 0; train longer; with refiner.SlotRefiner.update = @delta.Clamped() raise "
    "delta.Clamped.scale",
)
EXPLODING = Symptom(
    "updates exploding",
    f"the update's rms is above {LARGE:g} times the states'",
    "Take refiner.SlotRefiner.update = @delta.Damped(), halve delta.Clamped.scale, or lower optim.adamw.lr",
)


def updates(run: Run) -> Iterator[Finding]:
    """Find updates that do nothing, or drown what the backbone said."""
    if not run.unit or "delta" not in run.columns or not run.steps:
        return
    share = run.tail("delta").mean / run.unit
    evidence = f"rms of the update {run.tail('delta').mean:.3g}, of the states {run.unit:.3g}: {share:.2g} of it"
    if share > LARGE:
        yield EXPLODING.seen(run.name, evidence)
    elif run.grown and share < SMALL:
        yield VANISHING.seen(run.name, evidence)
