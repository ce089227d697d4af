"""Slots, gates and confidence: whether the parts of a slot refiner have the roles that they were made for."""

from collections.abc import Iterator
from itertools import pairwise

from pipeline.diagnosis.finding import Finding, Symptom
from pipeline.diagnosis.recursion import is_unused
from pipeline.diagnosis.training_run import Run

SIMILAR = 1.05  # largest over smallest norm: the founding page's slots lie a factor 2.7 apart, trained presets 3 to 10
OVERLAP = 0.3  # mean squared correlation of slots: .03 to .11 in every run of the presets, 1/3 if one pair of three is the same
ORDER = ("context", "reasoning", "refinement", "confidence")  # by norm, the founding page says
APART = 1.1  # by which a later slot has to exceed an earlier one: less comes and goes with batches
HEALTHY = (0.3, 0.7)  # of gates, by the founding page; the presets end between .45 and .60
EXTREMES = (0.05, 0.95)  # of the mean confidence m: a share in 0..1 spreads by sqrt(m (1 - m)) at most, .22 here

COLLAPSED = Symptom(
    "slots collapsed",
    f"norms of three or more slots within {SIMILAR - 1:.0%} of each other, or overlap above {OVERLAP}, at the end",
    "Raise refiner.SlotRefiner.orthogonality (0.01, then 0.05)",
)
UNORDERED = Symptom(
    "slots out of the founding order",
    f"a later one of {', '.join(ORDER)} is larger than an earlier one by {APART - 1:.0%} or more, and the recursion is unused; "
    "the order alone says nothing: in presets that work the confidence slot is the largest",
    "Mend the unused recursion first; if it stays so raise refiner.SlotRefiner.orthogonality",
)
DEAD = Symptom(
    "gate dead",
    f"a slot's gate ends below {HEALTHY[0]}",
    "Leave the slot out of refiner.SlotRefiner.slots, or lower optim.adamw.lr and optim.adamw.weight_decay",
)
SATURATED = Symptom(
    "gate saturated",
    f"a slot's gate ends above {HEALTHY[1]}: it takes over",
    "Lower optim.adamw.lr, or raise optim.adamw.weight_decay or the slot's width in refiner.SlotRefiner.slots",
)
UNIFORM = Symptom(
    "confidence uniform",
    f"mean confidence ends below {EXTREMES[0]} or above {EXTREMES[1]}: it cannot tell one token from another there",
    "Near 0 the refiner has switched itself off: lower optim.adamw.lr, or train longer or on more data; near 1 raise "
    "optim.adamw.weight_decay",
)


def slots(run: Run) -> Iterator[Finding]:
    """Find slots that carry the same, or whose sizes are not the founding ones where the recursion does nothing either."""
    norms = {name: run.tail(column).mean for name, column in run.named("slot/").items()} if run.grown else {}
    if len(norms) > 2:
        overlap = run.tail("overlap").mean if "overlap" in run.columns else 0.0
        if max(norms.values()) < SIMILAR * min(norms.values()) or overlap > OVERLAP:
            yield COLLAPSED.seen(run.name, f"norms {_listed(norms)}; overlap {overlap:.2f}")
    founding = [name for name in ORDER if name in norms]
    pairs = [(a, b) for a, b in pairwise(founding) if norms[b] > APART * norms[a]]
    if len(founding) == len(ORDER) and pairs and is_unused(run):
        yield UNORDERED.seen(run.name, f"{pairs[0][1]} is larger than {pairs[0][0]}: norms {_listed(norms)}")


def gates(run: Run) -> Iterator[Finding]:
    """Find gates that have closed or opened for good."""
    for name, column in run.named("gate/").items() if run.grown else ():
        value = run.tail(column).mean
        if value < HEALTHY[0]:
            yield DEAD.seen(run.name, f"gate/{name} ends at {value:.2f}, healthy is {HEALTHY[0]} to {HEALTHY[1]}")
        elif value > HEALTHY[1]:
            yield SATURATED.seen(run.name, f"gate/{name} ends at {value:.2f}, healthy is {HEALTHY[0]} to {HEALTHY[1]}")


def confidence(run: Run) -> Iterator[Finding]:
    """Find a confidence that is the same everywhere because its mean leaves no room for anything else."""
    if run.grown and "confidence" in run.columns:
        value = run.tail("confidence").mean
        if not EXTREMES[0] <= value <= EXTREMES[1]:
            yield UNIFORM.seen(run.name, f"mean confidence ends at {value:.3f}, it was {run.columns['confidence'][0]:.3f} at first")


def _listed(norms: dict[str, float]) -> str:
    return ", ".join(f"{name} {norm:.2f}" for name, norm in norms.items())
