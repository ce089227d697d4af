"""What a plan takes of each device of a fleet: memory by part, what it sends and reads, which limit binds, what it costs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from pipeline.planning.cost import Cost, Memory
from pipeline.planning.fleet import Fleet
from pipeline.reporting.markdown import markdown, with_unit

PARTS = tuple(field.name for field in fields(Memory))
HEAD = ("stage", "computing", "sent by each", "link", "read by all", "reading", "limit", "time", "dollars")


@dataclass(frozen=True)
class Times:
    """Seconds that a stage takes on a fleet, as far as it is known.

    Sums of gradients wait for the backward pass; states are read by threads ahead of it, and so cost what they take beyond it.

    Attributes:
        computing: of all operations, on all devices together.
        link: of what a device sends; ``reading``: of the states that are read. 0 = not known, or nothing.
    """

    computing: float
    link: float
    reading: float

    @property
    def all(self) -> float:
        """Seconds from the beginning to the end."""
        return max(self.computing + self.link, self.reading)

    @property
    def limit(self) -> str:
        """What of them is the largest."""
        return max(("computing", "link", "reading"), key=lambda name: float(getattr(self, name)))


def times(cost: Cost, on: Fleet) -> Times:
    """Reckon the times of a stage on devices of a known rate."""
    computing = (cost.flops + cost.beside) / (on.rate * on.processes)
    return Times(computing, cost.sent / on.link if on.link else 0.0, cost.read / on.reading if on.reading else 0.0)


def fleet_lines(costs: Sequence[Cost], on: Fleet, advice: Iterable[str]) -> list[str]:
    """Write out what stages take of devices, with ``advice`` beside what does not fit; nothing where one is planned for of which
    nothing is known.
    """
    lines = list[str]()
    if on.memory or on.processes > 1:
        lines += ["", markdown([("memory of a device", *PARTS, "all"), *map(_parts, costs)]), *_host(costs)]
        lines += [*([_room(costs, on), *advice] if on.memory else []), ""]
    if on.rate and (on.link or on.reading or on.price or on.processes > 1):
        lines += [*_limits(costs, on), ""]
    return lines


def shown_time(work: float, rate: float = 1.0) -> str:
    """Show how long work takes at a rate.

    >>> [shown_time(work) for work in (5, 99.7, 300, 9000)], shown_time(1, 0)
    (['5 s', '1.7 min', '5 min', '2.5 h'], '')
    """
    if not rate:
        return ""
    seconds = work / rate
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _parts(cost: Cost) -> list[str]:
    sizes = [getattr(cost.parts, name) for name in PARTS]
    return [cost.stage, *(f"{with_unit(size)}B" if size else "" for size in (*sizes, cost.memory))]


def _host(costs: Sequence[Cost]) -> list[str]:
    """What saving takes of the first process's host."""
    most = max(costs, key=lambda cost: cost.host)
    return [f"host: the first process takes up to {with_unit(most.host)}B there to save ({most.stage})"] if most.host else []


def _room(costs: Sequence[Cost], on: Fleet) -> str:
    """Whether each stage fits into a device."""
    over = [f"{cost.stage} ({with_unit(cost.memory)}B)" for cost in costs if not on.holds(cost.memory)]
    if not over:
        return f"fits: every stage into the {with_unit(on.memory)}B of a device"
    return (
        f"fits: NOT into the {with_unit(on.memory)}B of a device: {', '.join(over)}; docs/troubleshooting.md#out-of-memory, and "
        "docs/scaling.md#more-than-one-process-can-hold"
    )


def _limits(costs: Sequence[Cost], on: Fleet) -> list[str]:
    """A table of what bounds each stage, and what the fleet costs."""
    rows = [_limit(cost, on) for cost in costs]
    seconds = sum(times(cost, on).all for cost in costs)
    rows.append(["all", *[""] * 6, shown_time(seconds), _dollars(seconds, on)])
    lines = [markdown([HEAD, *rows]).rstrip()]
    if not (on.link and on.reading):
        unsaid = [f"--{name}" for name in ("link", "reading") if not getattr(on, name)]
        lines.append(
            f"from: the rate from which on it takes no longer than computing; {' and '.join(unsaid)} (GB/s) would say times"
        )
    return lines


def _limit(cost: Cost, on: Fleet) -> list[str]:
    taken = times(cost, on)
    limit = taken.limit if on.holds(cost.memory) else "memory"
    shares = (*_share(cost.sent, on.link, taken.computing), *_share(cost.read, on.reading, taken.computing))
    return [cost.stage, shown_time(taken.computing), *shares, limit, shown_time(taken.all), _dollars(taken.all, on)]


def _share(size: int, rate: float, computing: float) -> tuple[str, str]:
    """Bytes, and how long they take; without a rate the one that would be enough."""
    if not size:
        return "", ""
    return f"{with_unit(size)}B", shown_time(size, rate) if rate else f"from {with_unit(size / computing)}B/s"


def _dollars(seconds: float, on: Fleet) -> str:
    return f"{seconds / 3600 * on.processes * on.price:.2f}" if on.price else ""
