"""Draw the page's diagrams, one panel each, as SVG whose text is text. With ``figures`` the door to ``matplotlib``.

A panel is small and has no legend, so that panels wrap on a narrow screen and the page names the lines itself. No clock and no
random number is in it: same data, same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipeline.reporting.figures import STYLE
from pipeline.reporting.markdown import with_unit

PAGE_STYLE = {**STYLE, "svg.fonttype": "none", "svg.hashsalt": "slotloop", "text.parse_math": False, "font.size": 10}
SIZE = (3.6, 2.5)  # inches
DASHES = {"whole": "-", "dashed": "--", "dotted": ":"}
_NEEDLESS = re.compile(r'<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|(?<=<g) id="[^"]*"', re.DOTALL)
_NAMED = re.compile(r'(?<=id=")|(?<=url\(#)|(?<=href="#)')


@dataclass(frozen=True)
class Line:
    """Numbers over numbers, with ends of intervals where there are any.

    Attributes:
        label: name of the line.
        x, y: places of its points.
        colour: any that matplotlib knows.
        low, high: ends of the intervals of ``y``; () = none.
        dash: a key of ``DASHES``.
        marker: of its points; "" = none.
        ringed: numbers of the points with a ring.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dash: str = "whole"
    marker: str = "o"
    ringed: Sequence[int] = ()


class Diagram(Protocol):
    """A diagram with its words, which draws itself into a system of axes.

    Attributes:
        title, xlabel, ylabel: that stand at it.
        lines: that its legend names.
        caption: what a reader should know of it.
    """

    @property
    def title(self) -> str: ...
    @property
    def xlabel(self) -> str: ...
    @property
    def ylabel(self) -> str: ...
    @property
    def lines(self) -> Sequence[Line]: ...
    @property
    def caption(self) -> str: ...

    def paint(self, axis: Axes) -> None:
        """Draw all but title, legend and caption."""


@dataclass(frozen=True)
class Panel:
    """Lines in one system of axes.

    Attributes:
        title, xlabel, ylabel: that stand at it.
        lines: that it shows.
        xscale, yscale: "linear" or "log".
        xticks: places of the ticks; () = matplotlib chooses.
        caption: what a reader should know of it.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    xscale: str = "linear"
    yscale: str = "linear"
    xticks: Sequence[float] = ()
    caption: str = field(default="")

    def paint(self, axis: Axes) -> None:
        """Draw lines, intervals, rings and ticks."""
        for line in self.lines:
            axis.plot(line.x, line.y, color=line.colour, ls=DASHES[line.dash], marker=line.marker, ms=3.5, lw=1.5)
            if line.low:
                axis.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.14, lw=0)
            for i in line.ringed:
                axis.plot(line.x[i], line.y[i], "o", ms=9, mfc="none", color=line.colour)
        axis.set(xlabel=self.xlabel, ylabel=self.ylabel, xscale=self.xscale, yscale=self.yscale)
        for scale, side in ((self.xscale, axis.xaxis), (self.yscale, axis.yaxis)):
            if scale == "log":
                side.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
                side.set_major_formatter(FuncFormatter(lambda value, _: with_unit(value) if value >= 1 else f"{value:g}"))
                side.set_minor_locator(NullLocator())
        if self.xticks:
            axis.set_xticks(self.xticks, [f"{tick:g}" for tick in self.xticks])
            axis.xaxis.set_minor_locator(NullLocator())


def draw(panel: Diagram, name: str) -> str:
    """Draw a panel as an ``svg`` element.

    Args:
        panel: what it shows.
        name: of the element, with which every name in it begins: many can stand on one page.
    """
    with matplotlib.rc_context(PAGE_STYLE):
        figure = Figure(figsize=SIZE)
        axis = figure.subplots()
        figure.subplots_adjust(left=0.17, right=0.97, top=0.95, bottom=0.19)
        panel.paint(axis)
        if not axis.axison:
            axis.set_position((0, 0, 1, 1))
        for part in (figure, axis):
            part.patch.set_visible(False)
        image = io.StringIO()
        FigureCanvasSVG(figure).print_svg(image, metadata={"Date": None})
    return _NAMED.sub(f"{name}-", _NEEDLESS.sub("", image.getvalue())).strip()


def pictures(panel: Diagram) -> dict[str, bytes]:
    """Draw a panel with title and legend, to stand alone: the content of a PNG and of an SVG file, by ending."""
    files = {}
    with matplotlib.rc_context(PAGE_STYLE):
        for ending, canvas in ((".png", FigureCanvasAgg), (".svg", FigureCanvasSVG)):
            figure = Figure(figsize=(5.4, 3.6), dpi=140, layout="constrained")
            axis = figure.subplots()
            panel.paint(axis)
            axis.set_title(panel.title)
            for line in panel.lines:
                axis.plot([], [], color=line.colour, ls=DASHES[line.dash], label=line.label)
            if panel.lines:
                figure.legend(loc="outside right upper", fontsize=8)
            image = io.BytesIO()
            metadata = {"Date": None} if ending == ".svg" else {"Software": None}
            canvas(figure).print_figure(image, format=ending[1:], metadata=metadata)
            files[ending] = image.getvalue()
    return files
