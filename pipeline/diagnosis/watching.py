"""A run on the terminal, from the files that it flushes: it may go on elsewhere, or have ended. The only door to ``rich``.

No file of a run holds a time, so the rate comes from when files were written: newest rows, newest validation, snapshots.
"""

import contextlib
import glob
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.diagnosis import diagnosis, recorded
from pipeline.diagnosis.training_run import Run

EVERY = 1.0  # seconds between pictures
WIDE = 24  # buckets of training that a line is drawn of
BARS, PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"  # heights of a loss, low to high; the latter where the terminal knows no others
GONE = 300.0  # seconds without a row after which a run may have died


@dataclass(frozen=True)
class Moment:
    """How many optimizer steps a run had taken at a time."""

    time: float
    step: int


def watch(folder: Path, console: Console, *, once: bool = False) -> None:
    """Draw the run that goes on in a folder until it ends; where none does, the last one, and end.

    Args:
        folder: a workspace, or a phase's folder.
        console: to draw on; where nothing can be drawn again in its place, a picture is printed whenever there is something new.
        once: draw one picture and end.

    Raises:
        DataError: the folder holds no run, or a damaged one.
    """
    name, place = newest(folder)
    run, seen = recorded.run_at(place, name, folder / "data/shards"), list(moments(folder, place, name))
    if once or run.ended:
        console.print(picture(run, seen, time.time(), console))
        return
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not console.is_dumb_terminal else None
    drawn = -1
    if live is not None:
        live.start()
    try:
        while True:
            seen += [moment for moment in moments(folder, place, name) if moment not in seen]
            if live is not None:
                live.update(picture(run, seen, time.time(), console), refresh=True)
            elif run.steps > drawn or run.ended:
                console.print(picture(run, seen, time.time(), console))
            if run.ended:
                return
            drawn = run.steps
            time.sleep(EVERY)
            run = recorded.run_at(place, name, folder / "data/shards")
    except KeyboardInterrupt:
        return
    finally:
        if live is not None:
            live.stop()


def console() -> Console:
    """Make the console of the standard output, which knows its width and what it can draw."""
    return Console(highlight=False)


def newest(folder: Path) -> tuple[str, Path]:
    """Choose the phase that was written to last, of those that go on if any does.

    Raises:
        DataError: there is none.
    """
    places = recorded.places(folder)
    name = max(places, key=lambda name: (recorded.goes_on(places[name]), (places[name] / "curves.csv").stat().st_mtime))
    return name, places[name]


def moments(folder: Path, place: Path, name: str) -> Iterator[Moment]:
    """Read from files and folders of a run how far it was when they were written."""
    for file, offset in ((place / "curves.csv", 1), (place / "validation.csv", 0)):
        if file.is_file():
            written, steps = file.stat().st_mtime, recorded.columns(file).get("step", [])
            yield from [Moment(written, int(steps[-1]) + offset)] if steps else []
    for snapshot in glob.glob(f".scratch/*/*/{name}/step-*", root_dir=folder):  # unlike Path's, at ease with what vanishes
        with contextlib.suppress(FileNotFoundError):  # a newer one has taken its place
            yield Moment((folder / snapshot).stat().st_mtime, int(snapshot.rpartition("step-")[2]))


def rate(seen: Sequence[Moment]) -> float:
    """Compute the optimizer steps a second between the earliest and the latest moment; 0 where these are one."""
    ordered = sorted(seen, key=lambda moment: (moment.time, moment.step))
    start = max(
        (i for i, (a, b) in enumerate(pairwise(ordered), 1) if b.step < a.step), default=0
    )  # it was set back: a new attempt
    first, last = (ordered[start], ordered[-1]) if ordered else (Moment(0, 0), Moment(0, 0))
    return (last.step - first.step) / (last.time - first.time) if last.time > first.time else 0.0


def picture(run: Run, seen: Sequence[Moment], now: float, console: Console) -> Group:
    """Draw how far a run is, its losses by recursion step, and what is wrong with it.

    Args:
        run: that is watched.
        seen: how far it was when.
        now: seconds since the epoch.
        console: it is drawn for.
    """
    of = f" of {run.planned}" if run.planned else ""
    lines: list[Text | Table] = [Text(f"{run.name}: step {run.steps}{of}", style="bold")]
    if run.planned:
        bar = Table.grid()
        bar.add_row(ProgressBar(run.planned, run.steps, width=min(60, console.width)))
        lines.append(bar)
    lines.append(Text("ended" if run.ended else pace(run, seen, now)))
    if run.steps:
        lines.append(losses(run, ascii_only=console.options.ascii_only))
    lines += [Text(f"{finding.name}: {finding.evidence}", style="red") for finding in diagnosis.of_run(run)]
    return Group(*lines)


def pace(run: Run, seen: Sequence[Moment], now: float) -> str:
    """Tell rate, time left and the age of the newest row in words."""
    if not run.steps:
        return "no row yet"
    speed, age = rate(seen), now - max((moment.time for moment in seen), default=now)
    words = f"{speed:.3g} steps/s" if speed >= 1 else f"{1 / speed:.3g} s a step" if speed > 0 else "rate not known yet"
    if speed > 0 and run.planned:
        words += f", {max(0.0, (run.planned - run.steps) / speed):.0f} s left"
    return f"{words}, newest row {age:.0f} s ago" + ("; does it still run?" if age > GONE else "")


def losses(run: Run, *, ascii_only: bool) -> Table:
    """Draw the losses of each recursion step: the newest validation, the newest training steps, and the course of training."""
    table = Table("step", "validation", "training", "course of training", box=None, padding=(0, 2, 0, 0))
    columns = list(run.named("loss/step_").values()) or ["loss"]
    courses = [buckets(run.columns[column]) for column in columns]
    lowest, highest = min(map(min, courses)), max(map(max, courses))
    validated = run.validations[-1].losses if run.validations else ()
    for number, (column, course) in enumerate(zip(columns, courses, strict=True)):
        validation = f"{validated[number]:.4g}" if number < len(validated) else ""
        drawn = drawing(course, lowest, highest, PLAIN if ascii_only else BARS)
        table.add_row(str(number + 1), validation, f"{run.tail(column).mean:.4g}", drawn)
    return table


def buckets(values: Sequence[float]) -> list[float]:
    """Average a column over at most ``WIDE`` parts of training; numbers that are not finite are left out.

    >>> buckets([1.0, 3.0]), len(buckets([1.0] * 100)), buckets([float("nan")])
    ([1.0, 3.0], 24, [0.0])
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    parts = min(WIDE, len(finite))
    return [fmean(finite[len(finite) * i // parts : len(finite) * (i + 1) // parts]) for i in range(parts)]


def drawing(course: Sequence[float], lowest: float, highest: float, heights: str) -> str:
    """Draw numbers as letters of rising height, by their logarithms where all are positive.

    >>> drawing([4.0, 2.0, 1.0], 1.0, 4.0, "_-^"), drawing([1.0], 1.0, 1.0, "_-^"), drawing([-1.0, 1.0], -1.0, 1.0, "_-^")
    ('^-_', '_', '_^')
    """
    scale = math.log if lowest > 0 else float
    low, span = scale(lowest), scale(highest) - scale(lowest)
    return "".join(heights[round((len(heights) - 1) * (scale(x) - low) / span) if span else 0] for x in course)
