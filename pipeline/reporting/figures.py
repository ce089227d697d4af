"""Draw the pictures of the report. With ``panels`` the door to ``matplotlib``.

PNGs hold no clock and no version, so same data, same bytes.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, product
from math import isqrt
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from components.inference.parallelism import PLAIN
from pipeline.files import write_atomic

Curves = Mapping[str, Sequence[float]]
STYLE = {
    "figure.dpi": 120, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "legend.frameon": False, "axes.titlesize": 10, "axes.titlelocation": "left",
}  # fmt: skip
COLOURS = plt.get_cmap("viridis")
SEVERAL = [to_hex(colour) for colour in plt.get_cmap("tab10").colors]  # for things without an order
MODELS = {
    "frozen": "#7f7f7f", "control_backbone": "#c49c94", "control_lora": "#8c6d5f", "control_adapter": "#b5bd61",
    "control_refiner_lora": "#5a7d3a",
    "control_warmup": "#f2a65a", "warmup": "#4c9f9f", "joint": "#2b5c8a", "finetune": "#6b3f87",
}  # fmt: skip
UNKNOWN = "#9a9a9a"  # baselines by other names

LABELS = {"steps": "recursion steps", "flops_per_answer": "FLOPs an answer", "change": "change of state"}


def _save(figure: Figure, path: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix.removeprefix("."), metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)
    write_atomic(path, image.getvalue())


def of_step(number: int, steps: int, first: float = 0.85, last: float = 0.15) -> str:
    """Name the colour of a recursion step: the later, the darker; ``first`` and ``last`` are places in the colour map."""
    return str(to_hex(COLOURS(first - (first - last) * number / max(1, steps - 1)))) if steps > 1 else MODELS["frozen"]


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Average each value with those before it, ``width`` at most."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]


def losses(curves: Mapping[str, Curves], path: Path) -> None:
    """Loss of each recursion step over training, one panel a phase."""
    shown = {name: c for name, c in curves.items() if any(k.startswith("loss/step_") for k in c)}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3), squeeze=False, sharey=True)
        for axis, (name, columns) in zip(axes[0], shown.items(), strict=True):
            steps = [k for k in columns if k.startswith("loss/step_")]
            for i, key in enumerate(steps):
                smooth = smoothed(columns[key], max(1, len(columns[key]) // 50))
                axis.plot(columns["step"], smooth, color=of_step(i, len(steps)), lw=1.3, label=f"step {i + 1}")
            axis.set(title=name, xlabel="optimizer step", yscale="log")
        axes[0][0].set_ylabel("loss (nats per answer token)")
        axes[0][-1].legend(fontsize=8)
        _save(figure, path)


def ablations(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The headline of every variant with its interval over seeds, each seed a dot; the default's mean as a line."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 0.28 * len(rows) + 1))
        colours = {"helps": MODELS["joint"], "hurts": "#c0504d", "noise": MODELS["frozen"], "": "#222222"}
        for place, row in enumerate(reversed(rows)):
            colour, test = colours[row["verdict"]], row["test"]
            axis.plot([test["low"], test["high"]], [place, place], color=colour, lw=1.2, alpha=0.6)
            axis.plot(row["test_values"], [place] * len(row["test_values"]), "o", color=colour, ms=2.5, alpha=0.6)
            axis.plot([test["mean"]], [place], "|", color=colour, ms=9, mew=2)
        default = next(row for row in rows if not row["verdict"])
        axis.axvline(default["test"]["mean"], color="#222222", lw=0.7, ls=":")
        axis.set_yticks(range(len(rows)), [row["variant"] for row in reversed(rows)])
        values = [value for row in rows for value in (*row["test_values"], row["test"]["mean"])]
        margin = 0.08 * (max(values) - min(values) + 1e-3)
        axis.set(xlim=(min(values) - margin, max(values) + margin), xlabel=f"test {rows[0]['metric']}")
        axis.set_title("what each choice is worth (best validation loss on top)")
        _save(figure, path)


def by_step(models: Mapping[str, Any], metric: str, label: str, path: Path) -> None:
    """A metric with its interval after each recursion step, refined models; backbones as horizontal lines."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.6, 3.2))
        longest = max(len(measured[f"{metric}_by_step"]) for measured in models.values())
        for name, measured in models.items():
            values = measured[f"{metric}_by_step"]
            if len(values) == 1:
                axis.axhline(values[0]["mean"], color=MODELS.get(name), ls="--", lw=1.2, label=name)
                axis.axhspan(values[0]["low"], values[0]["high"], color=MODELS.get(name), alpha=0.08, lw=0)
                continue
            x = range(1, len(values) + 1)
            axis.plot(x, [v["mean"] for v in values], color=MODELS.get(name), marker="o", ms=3.5, lw=1.4, label=name)
            axis.fill_between(x, [v["low"] for v in values], [v["high"] for v in values], color=MODELS.get(name), alpha=0.12, lw=0)
        axis.set(title=label, xlabel="recursion step", ylabel=metric, xticks=range(1, longest + 1))
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, path)


def parallelism(models: Mapping[str, Any], scores: Sequence[str], path: Path) -> None:
    """A score over the tokens decoded in a pass, one panel a score; the plain sampler's line is whole and has its interval."""
    samplers = sorted(next(iter(models.values()))["parallelism"], key=lambda name: (name != PLAIN, name))
    styles = list(zip(samplers, cycle(("-", "--", ":", "-."))))  # as many as there are samplers
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(scores), figsize=(4.2 * len(scores), 3.2), squeeze=False)
        for axis, score in zip(axes[0], scores, strict=True):
            for (name, measured), (sampler, style) in product(models.items(), styles):
                points = sorted(
                    measured["parallelism"][sampler]["points"].values(), key=lambda point: point["tokens_per_pass"]["mean"]
                )
                x, values = [point["tokens_per_pass"]["mean"] for point in points], [point[score] for point in points]
                label = name if sampler == PLAIN else f"{name}, {sampler}"
                axis.plot(x, [v["mean"] for v in values], color=MODELS.get(name), ls=style, lw=1.3, marker="o", ms=3, label=label)
                if sampler == PLAIN:  # the bands of all would hide the lines
                    band = ([v[end] for v in values] for end in ("low", "high"))
                    axis.fill_between(x, *band, color=MODELS.get(name), alpha=0.08, lw=0)
            axis.set_xscale("log", base=2)
            axis.set(title=score, xlabel="tokens a pass")
        axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, path)


def over_depth(by_split: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]], trained: int, path: Path) -> None:
    """Exact answers over recursion steps, one panel a split: the mean over seeds as a line, each seed thin beside it.

    Args:
        by_split: split -> model -> for each seed, exact by number of steps.
        trained: number of steps.
        path: of the picture.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(by_split), figsize=(3.2 * len(by_split), 2.8), squeeze=False, sharey=True, layout="constrained"
        )
        for axis, (split, curves) in zip(axes[0], by_split.items(), strict=True):
            for (name, by_seed), colour in zip(curves.items(), (MODELS["joint"], MODELS["control_warmup"]), strict=False):
                steps = list(by_seed[0])
                for curve in by_seed:
                    axis.plot(steps, [curve[n] for n in steps], color=colour, alpha=0.3, lw=0.8)
                axis.plot(
                    steps, [sum(c[n] for c in by_seed) / len(by_seed) for n in steps], color=colour, marker="o", ms=3, label=name
                )
            axis.axvline(trained, color="#7f7f7f", lw=0.8, ls=":")
            axis.set(title=split, xscale="log", xlabel="recursion steps", ylim=(-0.02, 1.02))
            axis.set_xticks(steps, steps)
            axis.minorticks_off()
        axes[0][0].set_ylabel("exact")
        axes[0][-1].legend(fontsize=8)
        _save(figure, path)


def depths(models: Mapping[str, Any], metric: str, label: str, path: Path) -> None:
    """A metric over recursion steps and over operations, nll and the change of the states; the trained number of steps is ringed.

    Args:
        models: metrics by model; those without depths are left out.
        metric: by which models are compared.
        label: what was measured.
        path: of the picture.
    """
    shown = [("steps", metric), ("flops_per_answer", metric), ("steps", "nll"), ("steps", "change")]
    panels = list(dict.fromkeys(shown))  # nll may be the metric
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3), squeeze=False, layout="constrained")
        for axis, (across, value) in zip(axes[0], panels, strict=True):
            for name, measured in models.items():
                at = [row for row in measured.get("depths", ()) if value in row]
                if not at:
                    continue
                x, colour = [row[across] for row in at], MODELS.get(name)
                axis.plot(x, [row[value]["mean"] for row in at], color=colour, marker="o", ms=3, lw=1.4, label=name)
                axis.fill_between(x, *([row[value][end] for row in at] for end in ("low", "high")), color=colour, alpha=0.12, lw=0)
                own = [(row[across], row[value]["mean"]) for row in at if row["trained"]]
                axis.plot(*zip(*own, strict=True), "o", ms=9, mfc="none", color=colour)
            axis.set(xscale="log", xlabel=LABELS[across], ylabel=LABELS.get(value, value))
            if across == "steps":
                steps = sorted({row["steps"] for measured in models.values() for row in measured.get("depths", ())})
                axis.set_xticks(steps, steps)
                axis.minorticks_off()
        axes[0][0].set_title(label)
        axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, path)


def breadth(models: Mapping[str, Any], metric: str, label: str, path: Path) -> None:
    """A metric over all operations of an answer: more steps of one recursion, and more restarts by each rule. A panel a model.

    Args:
        models: metrics by model; those without restarts are left out.
        metric: by which models are compared.
        label: what was measured.
        path: of the picture.
    """
    shown = {name: measured for name, measured in models.items() if "breadth" in measured}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3), squeeze=False, sharey=True, layout="constrained")
        for axis, (name, measured) in zip(axes[0], shown.items(), strict=True):
            curves = {**({"depth": measured["depths"]} if "depths" in measured else {}), **measured["breadth"]}
            for (way, at), style in zip(curves.items(), cycle(("-", "--", ":", "-."))):
                x, values = [row["flops_per_answer"] for row in at], [row[metric] for row in at]
                colour, text = ("#222222", way) if way == "depth" else (MODELS.get(name), f"breadth, by {way}")
                axis.plot(x, [v["mean"] for v in values], color=colour, ls=style, lw=1.3, marker="o", ms=3, label=text)
                axis.fill_between(x, *([v[end] for v in values] for end in ("low", "high")), color=colour, alpha=0.08, lw=0)
            axis.set(title=f"{label}: {name}", xscale="log", xlabel=LABELS["flops_per_answer"])
        axes[0][0].set_ylabel(metric)
        axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, path)


def slots(curves: Mapping[str, Curves], path: Path) -> None:
    """Slot norms and gates over training, phase beside phase; every phase given has measured slots."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(curves), figsize=(3.6 * len(curves), 4.6), squeeze=False, sharex="col", sharey="row")
        for column, (name, columns) in enumerate(curves.items()):
            for row, (kind, label) in enumerate((("slot/", "slot rms"), ("gate/", "gate"))):
                axis = axes[row][column]
                for i, key in enumerate(k for k in columns if k.startswith(kind)):
                    smooth = smoothed(columns[key], max(1, len(columns[key]) // 50))
                    axis.plot(columns["step"], smooth, color=SEVERAL[i % 10], lw=1.3, label=key.removeprefix(kind))
                if column == 0:
                    axis.set_ylabel(label)
            axes[0][column].set_title(name)
            axes[1][column].set_xlabel("optimizer step")
        axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, path)


def puzzles(trace: Mapping[str, Any], model: str, rows: Sequence[int], cell: Callable[[int], str], path: Path) -> None:
    """Draw puzzles refined step by step: clues black, right cells green, wrong ones red; paler = less certain.

    Args:
        trace: of the evaluation.
        model: that refines.
        rows: the traced examples that are drawn.
        cell: a token's mark.
        path: of the picture.
    """
    steps = len(trace["models"][model][rows[0]])
    size = isqrt(len(trace["tokens"][0]))
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(len(rows), steps + 2, figsize=(1.5 * (steps + 2), 1.6 * len(rows)), squeeze=False)
        for line, row in zip(axes, rows, strict=True):
            target, hidden = trace["tokens"][row], trace["response"][row]
            frozen, refined = trace["models"]["frozen"][row][-1], trace["models"][model][row]
            stages = [("puzzle", None), ("frozen backbone", frozen), *((f"step {i + 1}", s) for i, s in enumerate(refined))]
            for axis, (title, state) in zip(line, stages, strict=True):
                _grid(axis, size, target, hidden, state, cell)
                if row == rows[0]:
                    axis.set_title(title, loc="center", fontsize=9)
        _save(figure, path)


def _grid(
    axis: Any, size: int, target: Sequence[int], hidden: Sequence[bool], state: Mapping[str, Any] | None, cell: Callable[[int], str]
) -> None:
    """One puzzle; ``state`` None shows the clues alone."""
    axis.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[], aspect="equal")
    for i, (value, masked) in enumerate(zip(target, hidden, strict=True)):
        x, y = i % size, i // size
        if masked and state is not None:
            right = state["ids"][i] == value
            certain = state["probability"][i]
            axis.add_patch(Rectangle((x, y), 1, 1, color="#2a9d5c" if right else "#d1495b", alpha=0.08 + 0.5 * certain, lw=0))
            axis.text(x + 0.5, y + 0.55, cell(state["ids"][i]), ha="center", va="center", color="#222222")
        elif not masked:
            axis.text(x + 0.5, y + 0.55, cell(value), ha="center", va="center", weight="bold")
    for k in range(size + 1):
        for line in (axis.axhline, axis.axvline):
            line(k, color="#444444", lw=1.6 if k % max(1, isqrt(size)) == 0 else 0.4)
    axis.set_axis_off()
