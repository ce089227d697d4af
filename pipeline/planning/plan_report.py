"""A plan in words: what it takes, how long at a given speed, and whether the cache pays. Every guess stands beside its numbers."""

from collections.abc import Iterable
from pathlib import Path

from components.caching import gain, most_draws
from pipeline.data.shard_writer import free_bytes
from pipeline.planning.cost import Cost
from pipeline.planning.fleet import Fleet
from pipeline.planning.fleet_report import fleet_lines, shown_time
from pipeline.planning.plan import Plan
from pipeline.reporting.markdown import markdown
from pipeline.reporting.markdown import with_unit as _si

HEAD = ("stage", "parameters", "trained", "in memory", "memory", "steps", "epochs", "FLOPs a step", "FLOPs", "time", "disk")


def summary(plan: Plan, on: Fleet, folder: Path, advice: Iterable[str] = ()) -> str:
    """Write the plan out as text.

    Args:
        plan: what the stages take, in memory each of the processes.
        on: devices; without their rate times are left out.
        folder: of the shards, for the room on its disk.
        advice: lines that say what to set where something does not fit.
    """
    rate = on.rate * on.processes
    costs = [cost for cost in plan.costs if cost.flops or cost.beside]
    work = sum(cost.flops + cost.beside for cost in costs)
    total = ["all", *[""] * 7, _si(work), shown_time(work, rate), ""]
    lines = [markdown([HEAD, *(_row(cost, rate) for cost in costs), total])]
    shared = f", {on.processes} processes that share every step" if on.processes > 1 else ""
    lines.append(f"speed: {on.source}{shared}. FLOPs: of steps, and of validations and live trunks where time is told.")
    of = f"of each of {on.processes} processes, " if on.processes > 1 else ""
    lines.append(f"memory: {of}weights, optimizer, average, and at most what a step holds; fused attention and bf16 take less.")
    lines += fleet_lines(costs, on, advice)
    written, free = sum(cost.disk for cost in costs), free_bytes(folder)
    short = "" if written <= free else "; THIS DOES NOT FIT"
    month = f", {written / 1e12 * on.storage:.2f} dollars a month" if on.storage else ""
    lines.append(f"disk: {written / 1e9:.2f} GB of states{month}, {free / 1e9:.1f} GB free{short}")
    lines += [*_economics(plan, rate), *(f"assumed: {guess}" for guess in plan.assumed)]
    return "\n".join(lines)


def _economics(plan: Plan, rate: float) -> list[str]:
    """Which of cache and live trunk is cheaper, by how much, and what to set."""
    worth, draws, epochs = plan.gain, plan.draws, plan.epochs
    formula = f"E (F + C) / (M F + E C) = {worth:.3f}"
    given = f"F {_si(plan.trunk)} trunk and C {_si(plan.step)} rest of an example's step, M {draws} draws, E {epochs:.2f} epochs"
    first = f"cache: {'cached' if worth > 1 else 'live'} is cheaper: {formula} ({given}: warmup's and joint's)"
    set_live = "warmup and joint: states = '@sources.live'"
    most = most_draws(epochs)
    if worth > 1:
        again = f"each mask is seen {epochs / draws:.1f} times; what that costs in quality: docs/performance.md"
        again = advice = "nothing is masked, so one stored draw is exact" if plan.causal else again
        if plan.live:
            runs = "runs" if len(plan.live) == 1 else "run"
            advice = f"{' and '.join(plan.live)} {runs} the trunk live now: states = '@sources.cached' would save it; {again}"
    elif plan.live == ["warmup", "joint"]:
        advice = "which is what is set; the shards serve the controls alone"
    elif most:
        one = f"DRAWS = {most} ({gain(plan.trunk, plan.step, most, epochs):.3f})"
        advice = f"fewer draws than epochs pay: {one}; or run the trunk live ({set_live})"
    else:
        advice = f"no example is seen twice, so nothing is re-used: {set_live}, or more epochs"
    lines = [first, f"       {advice}"]
    if worth <= 1:
        link = f", and no link of {_si(plan.wire * rate / plan.step)}B/s or more is the limit" if rate else ""
        elsewhere = (
            "on as fast a device of its own (states = '@sources.remote') the trunk runs beside the step, max(F, C) for F + C"
        )
        lines.append(f"       {elsewhere}: {_si(plan.wire)}B of states an example over the wire{link}")
    return lines


def _row(cost: Cost, rate: float) -> list[str]:
    work = cost.flops + cost.beside
    steps = [f"{cost.steps:,}", f"{cost.epochs:.2f}", _si(cost.flops_per_step)] if cost.steps else [""] * 3
    memory = [_si(cost.parameters), _si(cost.trained), _si(cost.loaded), f"{_si(cost.memory)}B"]
    return [
        cost.stage,
        *memory,
        *steps,
        _si(cost.flops or work),
        shown_time(work, rate),
        f"{_si(cost.disk)}B" if cost.disk else "",
    ]
