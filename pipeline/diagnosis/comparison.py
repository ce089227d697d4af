"""Phases beside each other: controls that are no fair opponents, and what training has cost."""

from collections.abc import Iterator, Mapping

from pipeline.diagnosis.finding import Finding, Symptom
from pipeline.diagnosis.training_run import Evaluation, Run

CONTROLS = "controls/"

UNTRAINED = Symptom(
    "control not trained properly",
    "a control's validation loss, on average over steps, is at best no lower than that of the phase it continues; its training "
    "loss ends above where it began, beyond three standard errors; or the best of several learning rates is the lowest or the "
    "highest tried",
    "Search its learning rate: controls.run.rates = [0.1, 0.3, 1.0, 3.0], and further beyond the best one",
)
FORGOTTEN = Symptom(
    "forgetting",
    "the loss on prompts, which no phase supervises, is clearly above the frozen backbone's",
    "Lower the phase's optim.adamw.backbone_lr, train fewer layers, or stop earlier (loop.fit.patience)",
)


def controls(runs: Mapping[str, Run]) -> Iterator[Finding]:
    """Find controls to which nobody should compare anything."""
    for run in (run for name, run in runs.items() if name.startswith(CONTROLS) and run.grown):
        rates, best = run.trials
        before = runs.get("warmup") if run.name == f"{CONTROLS}warmup" else None
        start = min((validation.mean for validation in before.validations), default=0.0) if before is not None else 0.0
        reached = min((validation.mean for validation in run.validations), default=0.0)
        if len(rates) > 1 and best in (min(rates), max(rates)):
            tried = " ".join(f"{rate:g}" for rate in rates)
            yield UNTRAINED.seen(
                run.name, f"the best learning rate, {best:g} times the setting, is at the edge of those tried: {tried}"
            )
        elif start and reached >= start:
            yield UNTRAINED.seen(run.name, f"validation is {reached:.4g} at best, and was {start:.4g} after warmup")
        elif run.tail("loss").above(run.head("loss"), 1.0):
            evidence = f"training loss {run.head('loss').mean:.4g} at first, {run.tail('loss').mean:.4g} at the end"
            yield UNTRAINED.seen(run.name, evidence)


def forgetting(evaluation: Evaluation) -> Iterator[Finding]:
    """Find models that do worse than their backbone where they were not trained."""
    for name, measured in evaluation.get("models", {}).items():
        lost = measured["forgetting"]["minus_frozen"]["prompt_nll"] if "forgetting" in measured else {}
        if 0 < lost.get("low", 0.0) < lost["high"]:  # an interval without width says nothing
            evidence = (
                f"nll of prompts' tokens is {lost['mean']:.3f} [{lost['low']:.3f}, {lost['high']:.3f}] above the frozen backbone's"
            )
            yield FORGOTTEN.seen(name, evidence)
