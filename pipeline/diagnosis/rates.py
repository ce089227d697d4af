"""Learning rates: whether the optimizer's steps are too large, too small, or cut."""

from collections.abc import Iterator
from statistics import median

from pipeline.diagnosis.finding import Finding, Symptom
from pipeline.diagnosis.training_run import ENOUGH, Run

LOW, PEAK = 0.2, 0.9  # shares of the highest rate: below the first a run is as it began, above the second it feels the rate
WORSE = 1.5  # of the loss before, by which the highest rate has to raise it
BACK = 0.95  # of the loss before, to which a run has to come at least
LEAST = 0.01  # share by which some recursion step's loss has to move between validations that lie half a run apart
MOVED = 0.5  # of a slot's size or the confidence: weights that move these are not held back by the rate
CLIPPED = 0.9  # share of the steps of the second half

HIGH = Symptom(
    "learning rate too high",
    f"the loss at the highest rate is {WORSE:g} times that before, and does not come below {BACK:g} of it again",
    "Lower optim.adamw.lr of this phase to a third",
)
NOTHING = Symptom(
    "learning rate too low",
    f"no recursion step's validation loss moves by {LEAST:.0%} over half of the run or more, and no slot's size nor the confidence "
    f"by {MOVED:.0%}",
    "Raise optim.adamw.lr threefold or train longer; if that does no better, there is nothing for this phase to learn here",
)
CUT = Symptom(
    "always clipped",
    f"the gradient's norm is above loop.fit.clip in more than {CLIPPED:.0%} of the second half's steps: its size means nothing",
    "Raise loop.fit.clip to the median norm, or lower optim.adamw.lr",
)


def too_high(run: Run) -> Iterator[Finding]:
    """Find a phase that its own learning rate threw back: said at its end, since a run comes back as late as its rate falls."""
    rates = run.columns.get("lr", ())
    if not run.ended or run.steps < ENOUGH or not rates:
        return
    high = max(rates)
    first = next((step for step, rate in enumerate(rates) if rate > LOW * high), 0)
    at_peak = [step for step, rate in enumerate(rates) if rate >= PEAK * high]
    if first < 3 or at_peak[-1] - at_peak[0] < 3:
        return
    before, peak, end = run.window("loss", 0, first), run.window("loss", at_peak[0], at_peak[-1] + 1), run.tail("loss")
    if peak.above(before, WORSE) and end.mean > BACK * before.mean:
        evidence = f"loss {before.mean:.4g} before, {peak.mean:.4g} at the rate's highest ({high:.2g}), {end.mean:.4g} at the end"
        yield HIGH.seen(run.name, evidence)


def too_low(run: Run) -> Iterator[Finding]:
    """Find a phase that leaves the validation loss where it was."""
    if not run.grown or len(run.validations) < 2:
        return
    first, last = run.validations[0], run.validations[-1]
    moved = max((_change(run, name) for name in run.columns if name.startswith("slot/") or name == "confidence"), default=0.0)
    moves = [abs((b - a) / a) for a, b in zip(first.losses, last.losses, strict=True) if a]
    if last.step - first.step >= 0.5 * run.steps and max(moves, default=1.0) < LEAST and moved <= MOVED:
        yield NOTHING.seen(run.name, f"validation {first.mean:.4g} at step {first.step}, {last.mean:.4g} at step {last.step}")


def clipped(run: Run) -> Iterator[Finding]:
    """Find gradients that are cut in nearly every step."""
    norms = run.columns.get("grad_norm", ())[(run.steps if run.ended else run.planned) // 2 :]
    if not run.clip or not run.grown or len(norms) < ENOUGH // 2:
        return
    share = sum(norm > run.clip for norm in norms) / len(norms)
    if share > CLIPPED:
        yield CUT.seen(
            run.name, f"{share:.0%} of the last {len(norms)} steps; median norm {median(norms):.2g}, loop.fit.clip {run.clip:g}"
        )


def _change(run: Run, column: str) -> float:
    """How far a column's mean has moved since the beginning, as a share of the smaller of the two."""
    ends = sorted((run.head(column).mean, run.tail(column).mean))
    return (ends[1] - ends[0]) / max(ends[0], 1e-9)
