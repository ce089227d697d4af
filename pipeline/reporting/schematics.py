"""Draw diagrams that are no lines: a recursion with its losses, and numbers in cells. With ``panels`` a door to ``matplotlib``."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from pipeline.reporting.figures import COLOURS, MODELS
from pipeline.reporting.panels import Line

INK, FAINT, GRADIENT = "#1b1f24", "#8b949e", "#c0504d"
MOST_BOXES = 6  # steps of a recursion that are drawn; of more the first three and the last two
DECADES = 4  # of a table of numbers that its colours tell apart


@dataclass(frozen=True)
class Recursion:
    """A forward pass as boxes, a circle under each step with the weight of its loss, and how far gradients flow back.

    Attributes:
        title: that stands above it.
        weights: of each step's loss; 0 = not supervised.
        segments: steps between cuts of the gradient (``components.recursion``).
        caption: what a reader should know of it.
    """

    title: str
    weights: Sequence[float]
    segments: Sequence[int]
    caption: str = ""
    xlabel: str = "recursion step"
    ylabel: str = "weight of the loss"
    lines: Sequence[Line] = ()

    def paint(self, axis: Axes) -> None:
        """Draw boxes, losses and arrows; what a cut ends stands apart."""
        numbers = _shown(len(self.weights))
        cuts = {sum(self.segments[: i + 1]) for i in range(len(self.segments))}
        axis.set(xlim=(-1.2, len(numbers) - 0.4), ylim=(-1.9, 1.15))
        axis.set_axis_off()
        size = 9.5 if len(numbers) <= 4 else 8
        _box(axis, -0.8, "states", FAINT, size - 2)
        _arrow(axis, (-0.5, 0), (-0.34, 0), INK)
        for place, number in enumerate(numbers):
            if number is None:
                axis.text(place, 0, "...", ha="center", va="center", size=12)
            else:
                self._step(axis, place, number, size)
            if place + 1 < len(numbers):
                _arrow(axis, (place + 0.32, 0), (place + 0.66, 0), INK)
                if number is not None and number not in cuts:
                    _arrow(axis, (place + 0.9, 0.5), (place + 0.1, 0.5), GRADIENT, bent=0.35)
                elif number in cuts:
                    axis.plot([place + 0.5] * 2, [-0.42, 0.62], color=GRADIENT, ls=":", lw=1.2)
        axis.text(-1.15, 0.93, "gradient", color=GRADIENT, size=7.5, va="center")
        axis.text(-1.15, -1.3, "loss", color=INK, size=7.5, va="center")

    def _step(self, axis: Axes, place: int, number: int, size: float) -> None:
        _box(axis, place, f"{number}", MODELS["joint"], size)
        weight = self.weights[number - 1]
        colour = INK if weight else FAINT
        if weight:
            _arrow(axis, (place - 0.08, -0.42), (place - 0.08, -1.05), INK)
            _arrow(axis, (place + 0.1, -1.05), (place + 0.1, -0.42), GRADIENT)
        axis.text(place, -1.3, f"{weight:.3g}" if weight else "none", ha="center", va="center", size=size, color=colour)
        axis.text(place, -1.66, f"x L{number}" if weight else "", ha="center", va="center", size=size - 2, color=FAINT)


def _shown(steps: int) -> list[int | None]:
    if steps <= MOST_BOXES:
        return list(range(1, steps + 1))
    return [1, 2, 3, None, steps - 1, steps]


def _box(axis: Axes, x: float, text: str, colour: str, size: float) -> None:
    shape = FancyBboxPatch((x - 0.26, -0.34), 0.52, 0.68, boxstyle="round,pad=0.04", fc="none", ec=colour, lw=1.6)
    axis.add_patch(shape)
    axis.text(x, 0, text, ha="center", va="center", size=size)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bent: float = 0.0) -> None:
    style = f"arc3,rad={bent}"
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=colour, lw=1.2, connectionstyle=style))


@dataclass(frozen=True)
class Cells:
    """Positive numbers in cells, the darker the larger, in powers of ten.

    Attributes:
        title: that stands above it.
        rows: of numbers; 0 = an empty cell.
        xlabel, ylabel: what columns and rows, numbered from 1, are.
        caption: what a reader should know of it.
    """

    title: str
    rows: Sequence[Sequence[float]]
    xlabel: str
    ylabel: str
    caption: str = ""
    lines: Sequence[Line] = ()

    def paint(self, axis: Axes) -> None:
        """Draw cells from the top, each with its number."""
        height, width = len(self.rows), len(self.rows[0])
        most = max(max(row) for row in self.rows) or 1.0
        axis.set(xlim=(0.5, width + 0.5), ylim=(height + 0.5, 0.5), xlabel=self.xlabel, ylabel=self.ylabel)
        axis.set_xticks(range(1, width + 1))
        axis.set_yticks(range(1, height + 1))
        axis.grid(False)
        for y, row in enumerate(self.rows, 1):
            for x, value in enumerate(row, 1):
                if value <= 0:
                    continue
                depth = max(0.0, 1 + log10(value / most) / DECADES)
                axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=COLOURS(0.95 - 0.75 * depth), lw=0))
                ink = "#ffffff" if depth > 0.45 else INK
                axis.text(x, y, f"{value:.2g}", ha="center", va="center", size=min(9, 44 / width), color=ink)
