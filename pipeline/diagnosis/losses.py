"""Losses over training: whether they fall, and whether what falls is worth anything."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, pstdev

from pipeline.diagnosis.finding import Finding, Symptom
from pipeline.diagnosis.training_run import ENOUGH, Run, Validation

RISE = 1.2  # of a loss over its first steps, by which it has to have grown
AGAIN = 1.05  # of a validation loss: smaller moves are noise of the examples
ALTERNATING = -0.4  # correlation of neighbouring steps, about their running mean: -1 of a zigzag, and three of its standard
# errors below that of independent batches, which is -1 / SMOOTH
SWING = 0.05  # standard deviation of a zigzag over the loss: smaller ones do not matter
SMOOTH = 11  # steps of the running mean
TURNS = 3  # turns of the validation loss, each by ``AGAIN``
RELATIVE, NATS = 0.01, 0.01  # by which a validation loss has to rise again: 1 % is text's (docs/performance.md), .01 puzzles'

DIVERGING = Symptom(
    "loss diverging",
    f"a loss ends above {RISE:g} times what it began with, beyond three standard errors, and the validation loss has risen too; "
    "or a number is not finite",
    "Lower optim.adamw.lr; if it is an earlier step's loss, lower supervision.linear_decay.weight",
)
OSCILLATING = Symptom(
    "loss oscillating",
    f"neighbouring steps of the second half correlate below {ALTERNATING}, or the validation loss turns {TURNS} times by "
    f"{AGAIN - 1:.0%}",
    "Lower optim.adamw.lr, halve delta.Clamped.scale, or raise loop.fit.accumulation",
)
OVERFITTING = Symptom(
    "overfitting",
    f"the validation loss, of the last step and on average over steps, ends {RELATIVE:.0%} and {NATS} nats above its least value, "
    "and the training loss has fallen since",
    "Set loop.fit.patience = 2 or lower loop.fit.steps; more data, more DRAWS, or a higher optim.adamw.weight_decay",
)


def diverging(run: Run) -> Iterator[Finding]:
    """Find losses that have grown, of all recursion steps together or of one."""
    if run.steps < ENOUGH or not (_has_risen(run.validations) or (run.ended and len(run.validations) < 2)):
        return
    for column in ("loss", *run.named("loss/step_").values()):
        if run.tail(column).above(run.head(column), RISE):
            yield DIVERGING.seen(run.name, f"{column} was {run.head(column).mean:.4g} at first and is {run.tail(column).mean:.4g}")
            return


def broken(run: Run) -> Iterator[Finding]:
    """Find the first number that is none, in whatever column: nothing else can be said of such a run."""
    wrong = [(step, name) for name, values in run.columns.items() for step, x in enumerate(values) if not math.isfinite(x)]
    if wrong:
        step, name = min(wrong)
        yield DIVERGING.seen(run.name, f"{name} of step {step + 1} is {run.columns[name][step]}")


def oscillating(run: Run) -> Iterator[Finding]:
    """Find losses that go up and down in turn, from step to step or from validation to validation."""
    losses = run.columns.get("loss", ())[run.steps // 2 :]
    if len(losses) >= ENOUGH:
        half = SMOOTH // 2
        swings = [x - fmean(losses[max(0, i - half) : i + half + 1]) for i, x in enumerate(losses)]
        size, together = pstdev(swings), fmean(a * b for a, b in pairwise(swings))
        limit = min(ALTERNATING, -1 / SMOOTH - 3 / math.sqrt(len(losses)))
        if size > SWING * abs(fmean(losses)) and together < limit * size**2:
            evidence = f"neighbouring steps correlate by {together / size**2:.2f}, around {fmean(losses):.4g} by {size:.2g}"
            yield OSCILLATING.seen(run.name, evidence)
            return
    turns = _turns([validation.losses[-1] for validation in run.validations])
    if run.steps >= ENOUGH and turns >= TURNS:
        recent = " ".join(f"{validation.losses[-1]:.4g}" for validation in run.validations[-TURNS - 2 :])
        yield OSCILLATING.seen(run.name, f"the validation loss turned {turns} times, most recently {recent}")


def overfitting(run: Run) -> Iterator[Finding]:
    """Find a validation loss that rises again while the training loss falls."""
    if run.steps < ENOUGH or len(run.validations) < 2 or run.best is None:
        return
    best, last = run.best, run.validations[-1]
    least = min(validation.mean for validation in run.validations)
    apart = min(_excess(last.losses[-1], best.losses[-1]), _excess(last.mean, least))
    then = run.window("loss", best.step - run.width, best.step)
    if apart > 0 and best.step < last.step and run.tail("loss").mean < then.mean:
        evidence = f"validation {best.losses[-1]:.4g} at step {best.step}, {last.losses[-1]:.4g} at step {last.step}"
        yield OVERFITTING.seen(run.name, f"{evidence}; training {then.mean:.4g}, then {run.tail('loss').mean:.4g}")


def _excess(now: float, least: float) -> float:
    """How much more a loss has risen than what is let pass."""
    return now - least - max(RELATIVE * abs(least), NATS)


def _has_risen(validations: Sequence[Validation]) -> bool:
    return len(validations) > 1 and validations[-1].mean - validations[0].mean > (AGAIN - 1) * abs(validations[0].mean)


def _turns(losses: list[float]) -> int:
    """Count how often moves of more than ``AGAIN`` change their direction."""
    moves = [b > a for a, b in pairwise(losses) if abs(a - b) > (AGAIN - 1) * min(abs(a), abs(b))]
    return sum(a != b for a, b in pairwise(moves))
