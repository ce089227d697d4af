"""Data: whether what a phase was given lasts as long as the phase."""

from collections.abc import Iterator

from pipeline.diagnosis.finding import Finding, Symptom
from pipeline.diagnosis.training_run import ENOUGH, Run

OFTEN = 4.0  # times that a mask may come back: from six on text loses what it had gained (docs/performance.md)

REUSED = Symptom(
    "masks used too often",
    f"each stored mask is seen more than {OFTEN:g} times",
    "Raise DRAWS (extract.run.draws), or run the trunk live (states = @sources.live)",
)


STARVED = 0.2  # of the time: what could be had by more readers is worth more than their cost

STARVING = Symptom(
    "loader starves the device",
    f"the device waits for batches {STARVED:.0%} of the time or more; said while training alone, since no output holds a time",
    "Raise the number of reading threads (SLOTLOOP_READERS), put the shards on a faster disk, or lower BATCH",
)


def starving(run: Run) -> Iterator[Finding]:
    """Find a device that has nothing to do until the next batch is there."""
    if run.waited >= STARVED and run.steps >= ENOUGH:
        yield STARVING.seen(run.name, f"{run.waited:.0%} of the time since the first step went by waiting for batches")


def masks(run: Run) -> Iterator[Finding]:
    """Find a phase that learns the stored masks by heart."""
    if run.uses > OFTEN:
        yield REUSED.seen(run.name, f"each stored mask was seen {run.uses:.1f} times")
