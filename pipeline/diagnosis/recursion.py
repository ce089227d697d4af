"""Recursion: whether its steps are worth having."""

from collections.abc import Iterator

from pipeline.diagnosis.finding import Finding, Symptom
from pipeline.diagnosis.training_run import Run

GAIN = 0.01  # of the first step's loss, by which the last one has to be better: seeds move a loss by about as much
LOST = 0.02  # of the best step's loss, by which the last one may be worse

UNUSED = Symptom(
    "recursion unused",
    f"the last step's validation loss is not {GAIN:.0%} below the first's: one step is as good",
    "Supervise later steps more (objective.Objective.supervision = @supervision.exponential_decay), train longer, or save the "
    "time: refiner.SlotRefiner.steps = 1",
)
NO_BETTER = Symptom(
    "later steps no better",
    f"the last step's validation loss is {LOST:.0%} or more above an earlier step's",
    "Take refiner.SlotRefiner.update = @delta.Damped(), or lower refiner.SlotRefiner.steps to the best one",
)


def is_unused(run: Run) -> bool:
    """Whether one recursion step is as good as all of them."""
    losses = run.by_recursion_step()
    return len(losses) > 1 and losses[0] - losses[-1] < GAIN * abs(losses[0])


def recursion(run: Run) -> Iterator[Finding]:
    """Find steps that bring nothing, or undo what earlier ones did."""
    losses = run.by_recursion_step() if run.grown else ()
    if len(losses) < 2:
        return
    evidence = "losses by step " + " ".join(f"{loss:.4g}" for loss in losses)
    if is_unused(run):
        yield UNUSED.seen(run.name, evidence)
    elif losses[-1] - min(losses) > LOST * abs(min(losses)):
        yield NO_BETTER.seen(run.name, f"{evidence}: step {losses.index(min(losses)) + 1} is the best")
