"""Which numbers the page's diagrams show: losses, quality over steps, passes and operations, slots, calibration."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from components.inference.parallelism import PLAIN
from pipeline.reporting.calibration import Bin
from pipeline.reporting.figures import MODELS, SEVERAL, UNKNOWN, Curves, of_step, smoothed
from pipeline.reporting.panels import Line, Panel

POINTS = 150  # of a training curve that are drawn
MIDDLE = (0.7, 0.2)  # of the colour map: what can be read on white and, inverted, on black
KINDS = {"slot/": "slot rms", "gate/": "gate"}  # measurements of every slot, by the beginning of their columns
WHOLE = {"overlap": "overlap of slots", "confidence": "confidence (step size)", "delta": "size of the update"}


def losses(curves: Mapping[str, Curves]) -> list[Panel]:
    """Show the loss of each recursion step over training, a panel a phase."""
    panels = []
    for phase, columns in curves.items():
        steps = [key for key in columns if key.startswith("loss/step_")]
        lines = [training_line(columns, key, f"step {i + 1}", of_step(i, len(steps), *MIDDLE)) for i, key in enumerate(steps)]
        if lines:
            panels.append(Panel(phase, "optimizer step", "loss (nats a token)", lines, yscale="log"))
    return panels


def refiner(curves: Mapping[str, Curves]) -> list[Panel]:
    """Show slots, gates and their overlap over training, a panel a phase and kind; phases that measure none have none."""
    panels = []
    for phase, columns in curves.items():
        for prefix, label in KINDS.items():
            keys = [key for key in columns if key.startswith(prefix)]
            lines = [training_line(columns, key, key.removeprefix(prefix), SEVERAL[i % 10]) for i, key in enumerate(keys)]
            if lines:
                panels.append(Panel(f"{phase}: {label}", "optimizer step", label, lines))
        lines = [training_line(columns, key, label, SEVERAL[i]) for i, (key, label) in enumerate(WHOLE.items()) if key in columns]
        if lines:
            panels.append(Panel(f"{phase}: updates", "optimizer step", "", lines))
    return panels


def training_line(columns: Curves, key: str, label: str, colour: str) -> Line:
    """Smooth a column of a training's curves, and thin it out to what can be seen.

    Args:
        columns: of the training.
        key: of the column.
        label: of the line.
        colour: of the line.
    """
    every = max(1, len(columns[key]) // POINTS)
    y = smoothed(columns[key], max(1, len(columns[key]) // 50))
    return Line(label, columns["step"][::every], y[::every], colour, marker="")


def by_step(models: Mapping[str, Any], metric: str, title: str) -> Panel:
    """Show a metric after each recursion step; a model of one step is a dashed line across."""
    longest = max(len(measured[f"{metric}_by_step"]) for measured in models.values())
    lines = []
    for name, measured in models.items():
        values = measured[f"{metric}_by_step"]
        several = len(values) > 1
        x = range(1, len(values) + 1) if several else (1, max(2, longest))
        lines.append(_line(name, x, values if several else values * 2, dash="whole" if several else "dashed"))
    return Panel(title, "recursion step", metric, lines, xticks=range(1, max(2, longest) + 1))


def by_depth(models: Mapping[str, Any], metric: str) -> Iterator[Panel]:
    """Show a metric over recursion steps that were never trained, and over what they cost; the trained number is ringed."""
    measured = {name: rows for name, of in models.items() if (rows := of.get("depths"))}
    for across, label in (("steps", "recursion steps"), ("flops_per_answer", "FLOPs an answer")) if measured else ():
        lines = []
        for name, rows in measured.items():
            ringed = [i for i, row in enumerate(rows) if row["trained"]]
            lines.append(_line(name, [row[across] for row in rows], [row[metric] for row in rows], ringed=ringed))
        yield Panel(f"any number of steps: {metric}", label, metric, lines, xscale="log", caption="Ringed: the trained number.")


def by_operations(models: Mapping[str, Any], metric: str) -> Panel | None:
    """Show a metric over the operations of an answer: the headline's single pass, and whole answers decoded in several."""
    lines = []
    for name, measured in models.items():
        points = [(of["flops_per_answer"], of) for of in _decodes(measured)]
        if points and metric in points[-1][1]:
            lines.append(_line(name, [flops for flops, _ in points], [of[metric] for _, of in points]))
    caption = "Each line: one pass, then as many as were asked for, on the same examples."
    return Panel("passes", "FLOPs an answer", metric, lines, xscale="log", caption=caption) if lines else None


def _decodes(measured: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List what a model says of the first measure that was decoded, in one pass, if that was measured, and in more, by its cost."""
    for of in (of for of in measured.values() if isinstance(of, Mapping)):
        if passes := [values for key, values in of.items() if key.startswith("decode_")]:
            in_one_pass = [of] if "flops_per_answer" in of else []  # a decode with a name of its own has none
            return sorted([*in_one_pass, *passes], key=lambda values: values["flops_per_answer"])
    return []


def by_parallelism(models: Mapping[str, Any], scores: Sequence[str]) -> Iterator[Panel]:
    """Show scores over the tokens that a pass of the plain sampler decodes."""
    for score in scores:
        lines = []
        for name, measured in models.items():
            points = sorted(measured["parallelism"][PLAIN]["points"].values(), key=lambda at: at["tokens_per_pass"]["mean"])
            lines.append(_line(name, [at["tokens_per_pass"]["mean"] for at in points], [at[score] for at in points]))
        yield Panel(f"few passes: {score}", "tokens decoded in a pass", score, lines, xscale="log")


def calibration(by_model: Mapping[str, Sequence[Bin]]) -> Panel:
    """Show how often models are right where they are so sure; a calibrated one lies on the diagonal."""
    lines = [Line("as sure as right", (0, 1), (0, 1), "#888888", dash="dotted", marker="")]
    for name, parts in by_model.items():
        lines.append(Line(name, [part.confidence for part in parts], [part.right for part in parts], MODELS.get(name, UNKNOWN)))
    return Panel("confidence", "mean confidence", "share right", lines)


def _line(
    name: str, x: Sequence[float], values: Sequence[Mapping[str, float]], dash: str = "whole", ringed: Sequence[int] = ()
) -> Line:
    line = mean_line(name, x, values, MODELS.get(name, UNKNOWN))
    return replace(line, dash=dash, marker="o" if dash == "whole" else "", ringed=ringed)


def mean_line(label: str, x: Sequence[float], values: Sequence[Mapping[str, float]], colour: str) -> Line:
    """Draw means with their intervals over numbers."""
    low, high = ([value.get(end, value["mean"]) for value in values] for end in ("low", "high"))
    return Line(label, x, [value["mean"] for value in values], colour, low, high)
