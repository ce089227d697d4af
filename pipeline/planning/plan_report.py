"""A plan in words: what it takes, how long at a given speed, and whether the cache pays. Every guess stands beside its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.caching import gain, most_draws
from pipeline.data.shard_writer import free_bytes
from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime
from pipeline.planning.cost import Cost
from pipeline.planning.plan import Plan
from pipeline.reporting.markdown import markdown
from pipeline.reporting.markdown import with_unit as _si
from pipeline.settings import config, ginstate
from pipeline.training import flops

MFU = 0.4  # share of a device's largest rate that training reaches, where none is given; sudoku4's warmup on a CPU: 0.37
HEAD = ("stage", "parameters", "trained", "in memory", "memory", "steps", "epochs", "FLOPs a step", "FLOPs", "time", "disk")


@dataclass(frozen=True)
class Fleet:
    """Devices that a pipeline is planned for.

    Attributes:
        rate: FLOP/s that training reaches on one of them; 0 = cannot be told.
        source: where this number comes from, in words.
        processes: that share every step, each on a device.
        memory: bytes of a device; 0 = not said.
    """

    rate: float
    source: str
    processes: int = 1
    memory: float = 0.0


def fleet(text: str, peak: str = "", mfu: str = "", processes: str = "", memory: str = "") -> Fleet:
    """Read for what devices to plan.

    Args:
        text: resolved text of warmup, whose machine it is.
        peak: TFLOP/s of a device; "" = what a large matrix product reaches here.
        mfu: share of them that training reaches, above 0 and at most 1; "" = 0.4.
        processes: that share every step; "" = 1.
        memory: GB of a device; "" = not said.

    Raises:
        ConfigError: no such number.
    """
    number = _number("processes", processes, 1e5) if processes else 1
    if number != int(number):
        raise ConfigError(f"--processes is '{processes}'; expected a whole number above 0")
    room = _number("memory", memory, 1e5) * 1e9 if memory else 0.0
    return Fleet(*_speed(text, peak, mfu), int(number), room)


def _speed(text: str, peak: str, mfu: str) -> tuple[float, str]:
    """FLOP/s that training will reach, and where that number comes from; 0 where it cannot be told."""
    share, origin = (_number("mfu", mfu, 1.0), "as given") if mfu else (MFU, "a guess: --mfu")
    used = f"{share:.0%} of them used (MFU, {origin})"
    if peak:
        return share * _number("peak", peak, 1e6) * 1e12, f"{float(peak):g} TFLOP/s (as given), {used}"
    config.load_text(text, "warmup")
    names = ("device", "precision", "threads")
    machine = ginstate.arguments("stages.warmup.run", "pipeline.machine.runtime.Runtime", names)
    assert machine is not None
    try:
        runtime = Runtime(**machine)
        with runtime.in_force():
            ceiling = flops.ceiling(runtime)
    except ConfigError as error:
        return 0.0, f"not told: {error}, or give --peak (TFLOP/s of the device)"
    where = f"a matrix product here: {', '.join(f'{name} {machine[name]}' for name in names)}"
    return share * ceiling, f"{ceiling / 1e12:.3g} TFLOP/s ({where}), {used}"


def summary(plan: Plan, on: Fleet, folder: Path) -> str:
    """Write the plan out as text.

    Args:
        plan: what the stages take, in memory each of the processes.
        on: devices; without their rate times are left out.
        folder: of the shards, for the room on its disk.
    """
    rate = on.rate * on.processes
    costs = [cost for cost in plan.costs if cost.flops or cost.beside]
    work = sum(cost.flops + cost.beside for cost in costs)
    total = ["all", *[""] * 7, _si(work), _time(work, rate), ""]
    lines = [markdown([HEAD, *(_row(cost, rate) for cost in costs), total])]
    shared = f", {on.processes} processes that share every step" if on.processes > 1 else ""
    lines.append(f"speed: {on.source}{shared}. FLOPs: of steps, and of validations and live trunks where time is told.")
    of = f"of each of {on.processes} processes, " if on.processes > 1 else ""
    lines.append(f"memory: {of}weights, optimizer, average, and at most what a step holds; fused attention and bf16 take less.")
    lines += [_room(costs, on.memory)] if on.memory else []
    written, free = sum(cost.disk for cost in costs), free_bytes(folder)
    short = "" if written <= free else "; THIS DOES NOT FIT"
    lines.append(f"disk: {written / 1e9:.2f} GB of states, {free / 1e9:.1f} GB free{short}")
    lines += [*_economics(plan, rate), *(f"assumed: {guess}" for guess in plan.assumed)]
    return "\n".join(lines)


def _room(costs: Sequence[Cost], memory: float) -> str:
    """Whether each stage fits into a device."""
    over = [f"{cost.stage} ({_si(cost.memory)}B)" for cost in costs if cost.memory > memory]
    if not over:
        return f"fits: every stage into the {_si(memory)}B of a device"
    return (
        f"fits: NOT into the {_si(memory)}B of a device: {', '.join(over)}; docs/troubleshooting.md#out-of-memory, and "
        "docs/scaling.md#more-than-one-process-can-hold"
    )


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
        _time(work, rate),
        f"{_si(cost.disk)}B" if cost.disk else "",
    ]


def _time(work: float, rate: float) -> str:
    """
    >>> [_time(work, 1.0) for work in (5, 300, 9000)], _time(1, 0)
    (['5 s', '5 min', '2.5 h'], '')
    """
    if not rate:
        return ""
    seconds = work / rate
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _number(flag: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise ConfigError(f"--{flag} is '{text}'; expected a number above 0 and at most {most:g}")
    return value
