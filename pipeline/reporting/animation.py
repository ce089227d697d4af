"""Animate a puzzle that is solved step by step, as a small GIF for a page that runs no script. The door to Pillow for it.

Which puzzle: of the traced ones that the frozen backbone gets wrong and the refined model right, the one of which the steps change
most cells. No clock and no random number is in it: the same trace, the same bytes.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from pipeline.corpora.sudoku import BOXES
from pipeline.files import write_atomic
from pipeline.manifests import Manifest
from pipeline.models.model_folder import METRICS
from pipeline.reporting.chapters import last_phase
from pipeline.reporting.figures import STYLE
from pipeline.reporting.refinement import SHADES, Stage, Token, Traced, example_of, scores
from pipeline.text.rendering import Right, is_reference, rendering_of

RIGHT, WRONG, CHANGED = "#228b54", "#cd3e54", "#d08700"
PALEST, STRONGEST = 0.08, 0.65  # how much of a colour is seen where a model is least and most sure
INCHES, DPI = (4.0, 4.7), 110
MILLISECONDS, AT_LAST = 1100, 4000  # that a step is shown, and the solved puzzle
ROUNDS = 9  # that it is played, after which it stands still
PALETTE = 96  # colours of all frames together
EMPTY = "\u00b7"


def animate(evaluation: Path, out: Path) -> str:
    """Write the GIF of an evaluation's trace; says in a line what was written, or why nothing.

    Args:
        evaluation: folder that evaluate wrote.
        out: file of the GIF.
    """
    if not (evaluation / METRICS).is_file():
        return f"no puzzle is played: {evaluation} holds no evaluation"
    manifest = Manifest(evaluation / METRICS, "evaluate", "evaluate")
    trace, metrics = manifest.json("trace.json"), manifest.content
    rendering = rendering_of(trace["rendering"])
    if rendering.cell is None:
        return "no puzzle is played: the trace is of text"
    right = rendering.solves if "several_solutions" in metrics else is_reference
    if (image := animation(trace, last_phase(metrics["models"]), right, rendering.cell)) is None:
        return "no puzzle is played: the refiner mends none of those that were traced (evaluate.run.samples)"
    write_atomic(out, image)
    return f"a puzzle as it is solved: {out}"


def animation(trace: Mapping[str, Any], refined: str, right: Right, cell: Callable[[int], str]) -> bytes | None:
    """Draw the frames of the puzzle that changes most: its clues, what the frozen backbone says, and every step.

    Args:
        trace: of the evaluation.
        refined: name of the refined model.
        right: tells which answers are right.
        cell: a token's mark.

    Returns:
        The GIF; None where no traced puzzle is mended.
    """
    traced = Traced.of(trace)
    if (row := most_changing(traced, scores(traced, refined, right), refined)) is None:
        return None
    stages = example_of(traced, refined, row, "mended", cell, grid=True).stages
    unsaid = [token if token.given else Token(EMPTY, shade=-1) for token in stages[0].tokens]
    clues = sum(token.given for token in unsaid)
    frames = [_frame(stage) for stage in (Stage("the puzzle", unsaid, f"{clues} clues, {len(unsaid) - clues} to fill in"), *stages)]
    return _gif(frames)


def most_changing(traced: Traced, scored: Sequence[tuple[float, float]], refined: str) -> int | None:
    """Choose the mended example in which most cells change over the steps, of several the first; None where there is none.

    Args:
        traced: what the evaluation traced.
        scored: of each example what the frozen backbone and the refined model score; 1 = right.
        refined: name of the refined model.
    """
    mended = [row for row, (frozen, last) in enumerate(scored) if frozen < last == 1]
    return max(mended, key=lambda row: _changes(traced, refined, row), default=None)


def _changes(traced: Traced, refined: str, row: int) -> int:
    states = [traced.models["frozen"][row][-1], *traced.models[refined][row]]
    return sum(a != b for i in range(len(states) - 1) for a, b in zip(states[i]["ids"], states[i + 1]["ids"], strict=True))


def _frame(stage: Stage) -> Image.Image:
    size = isqrt(len(stage.tokens))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, dpi=DPI)
        axis = figure.add_axes((0.06, 0.13, 0.88, 0.75), xlim=(-0.03, size + 0.03), ylim=(size + 0.03, -0.03), aspect="equal")
        axis.set_axis_off()
        for i, token in enumerate(stage.tokens):
            _cell(axis, token, i % size, i // size, 110 / size)
        rows, columns = BOXES.get(size, (size, size))
        for k in range(size + 1):
            _rule(axis, (0, size), (k, k), bold=k % rows == 0)
            _rule(axis, (k, k), (0, size), bold=k % columns == 0)
        figure.text(0.06, 0.93, stage.title, size=16, weight="bold", color="#1b1f24")
        figure.text(0.06, 0.065, stage.words, size=10.5, color="#1b1f24")
        figure.text(0.06, 0.02, "green right, red wrong, paler less sure, framed changed", size=8.5, color="#59636e")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def _rule(axis: Any, x: tuple[int, int], y: tuple[int, int], *, bold: bool) -> None:
    axis.plot(x, y, color="#1b1f24", lw=2.2 if bold else 0.5, solid_capstyle="projecting", clip_on=False)


def _cell(axis: Any, token: Token, x: int, y: int, points: float) -> None:
    if not token.given and token.shade >= 0:
        sure = PALEST + (STRONGEST - PALEST) * token.shade / (SHADES - 1)
        axis.add_patch(Rectangle((x, y), 1, 1, color=RIGHT if token.right else WRONG, alpha=sure, lw=0))
    if token.changed:
        axis.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, fill=False, ec=CHANGED, lw=3.5))
    weight = "bold" if token.given else "normal"
    axis.text(x + 0.5, y + 0.52, token.text, ha="center", va="center", size=points, weight=weight, color="#1b1f24")


def _gif(frames: Sequence[Image.Image]) -> bytes:
    """One palette for all frames, so that nothing flickers."""
    width, height = frames[0].size
    sheet = Image.new("RGB", (width, height * len(frames)))
    for number, frame in enumerate(frames):
        sheet.paste(frame, (0, height * number))
    reduced = sheet.quantize(PALETTE, dither=Image.Dither.NONE)
    first, *others = [reduced.crop((0, height * i, width, height * (i + 1))) for i in range(len(frames))]
    times = [MILLISECONDS] * len(others) + [AT_LAST]
    image = io.BytesIO()
    first.save(image, "GIF", save_all=True, append_images=others, duration=times, loop=ROUNDS, optimize=True)
    return image.getvalue()
