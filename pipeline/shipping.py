"""Sending records to trackers: in a process of its own, resumable, every row once.

How far a record has come at a tracker stands in ``sent/<tracker>.json`` beside it and is written after each delivery, so a sender
that dies or a server that is away loses nothing: whoever comes next goes on from there.
"""

import csv
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.records import Record, all_records, lock

Row = tuple[int, dict[str, float]]
POLL, EVERY, ROWS = 0.1, 2.0, 200  # seconds between looks at the run, seconds between deliveries, rows of one delivery


class TrackingError(UserError):
    """A tracker could not be reached or refused what was sent."""


class Tracker(Protocol):
    """Where runs are reported. Methods return when what they send has arrived, and raise TrackingError if it has not."""

    name: str

    def missing(self) -> str:
        """What has to be set up before anything can be sent; "" if nothing."""

    def open(self, record: str, facts: dict[str, Any], run: str, parent: str) -> str:
        """Begin or (with ``run``) continue a run.

        Args:
            record: name of the record, unique.
            facts: what ``pipeline.records`` keeps.
            run: the tracker's own id of it, "" if it was never opened; asked for again, it is the same.
            parent: the tracker's id of the upstream stage's run, or "".

        Returns:
            The tracker's id.
        """

    def scalars(self, rows: Sequence[Row]) -> None:
        """Report (step, values) rows of curves."""

    def finish(self, facts: dict[str, Any], files: Path) -> None:
        """Report settings, metrics, pictures and models of a run that has ended, and how it ended."""


class Delivery:
    """One record's way to one tracker."""

    def __init__(self, record: Record, tracker: Tracker) -> None:
        self.record, self.tracker = record, tracker
        self.file = record.folder / "sent" / f"{tracker.name}.json"
        fresh = {"run": "", "offsets": {}, "finished": False}
        self.state: dict[str, Any] = read_json(self.file, "track") if self.file.is_file() else fresh
        self.opened = False

    def advance(self, source: Path) -> None:
        """Send the rows that ``source`` (the run's output folder, or the record's copy of it) has and the tracker has not."""
        if self.state["finished"]:
            return
        if not self.opened:
            upstream = self.file.parents[2] / self.record.facts["parent"] / "sent" / self.file.name
            parent = read_json(upstream, "track")["run"] if self.record.facts["parent"] and upstream.is_file() else ""
            run = self.tracker.open(self.record.folder.name, self.record.facts, self.state["run"], parent)
            self.opened = True
            self._keep(run=run)
        for file in sorted(source.rglob("curves.csv")):
            name = str(file.relative_to(source))
            for rows, offset in rows_after(file, self.state["offsets"].get(name, 0)):
                prefix = name.removesuffix("curves.csv")
                self.tracker.scalars([(step, {prefix + key: x for key, x in values.items()}) for step, values in rows])
                self._keep(offsets={**self.state["offsets"], name: offset})

    def finish(self) -> None:
        """Send everything that is still missing of a run that has ended."""
        self.advance(self.record.files)
        if not self.state["finished"] and "status" in self.record.facts:
            self.tracker.finish(self.record.facts, self.record.files)
            self._keep(finished=True)

    def _keep(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self.file, self.state)


def rows_after(file: Path, offset: int) -> Iterator[tuple[list[Row], int]]:
    """Whole rows of a curves file from a byte offset on, in portions, each with the offset behind it."""
    with file.open("rb") as opened:
        header = opened.readline()
        names = next(csv.reader([header.decode()]), [])
        opened.seek(max(offset, len(header)))
        rest = opened.read()
    lines = rest[: rest.rfind(b"\n") + 1].splitlines(keepends=True)
    offset = max(offset, len(header))
    for start in range(0, len(lines), ROWS):
        portion = lines[start : start + ROWS]
        offset += sum(map(len, portion))
        rows = []
        for values in csv.reader(line.decode() for line in portion):
            row = dict(zip(names, map(float, values), strict=True))
            rows.append((int(row.pop("step")), row))
        yield rows, offset


def follow(folder: Path, trackers: Sequence[Tracker], patience: float) -> None:
    """Send a run's record while the run goes on, and the rest when it has ended.

    Args:
        folder: the record.
        trackers: where to; those that are not set up are left out.
        patience: seconds after the run's end until what could not be sent is left for ``ship``. A call that hangs longer ends with
            this process.
    """
    record = Record(folder)
    with lock(folder / "sending", wait=True):
        deliveries = [Delivery(record, tracker) for tracker in trackers if not tracker.missing()]
        while deliveries and record.alive():
            for delivery in deliveries:
                _tried(delivery.advance, Path(record.facts["out"]))
            _wait_for_end(record)
        if not deliveries:
            return
        watchdog = threading.Timer(patience, os._exit, [1])
        watchdog.daemon = True
        watchdog.start()
        if "status" not in record.facts:  # killed: what it wrote will be gone when it is run again
            record.gather()
        while any([_tried(delivery.finish) for delivery in deliveries]):
            time.sleep(EVERY)  # until everything has arrived, or the watchdog ends this process
        watchdog.cancel()


def _wait_for_end(record: Record) -> None:
    until = time.monotonic() + EVERY
    while record.alive() and time.monotonic() < until:
        time.sleep(POLL)


def _tried(send: Callable[..., None], *arguments: Any) -> str:
    """Send; returns and prints what went wrong, "" if nothing."""
    try:
        send(*arguments)
    except TrackingError as error:
        print(f"{time.strftime('%H:%M:%S')} {error}", flush=True)
        return str(error)
    return ""


def ship(trackers: Sequence[Tracker]) -> list[str]:
    """Send whatever is missing of every record whose run has ended, oldest first; returns a line for each."""
    lines = []
    for record in all_records():
        with lock(record.folder / "sending") as held:
            free = held and not record.alive()
            lines += [_line(record, tracker, _sent(record, tracker) if free else "running") for tracker in trackers]
    return lines


def overview(trackers: Sequence[Tracker]) -> list[str]:
    """A line for each record and tracker: whether it was sent."""
    return [_line(record, tracker, _state(record, tracker)) for record in all_records() for tracker in trackers]


def _line(record: Record, tracker: Tracker, told: str) -> str:
    return f"{record.folder.name:<40} {record.facts.get('status', 'unfinished'):<10} {tracker.name}: {told}"


def _state(record: Record, tracker: Tracker) -> str:
    state = Delivery(record, tracker).state
    return "sent" if state["finished"] else "sent in part" if state["run"] else tracker.missing() or "not sent"


def _sent(record: Record, tracker: Tracker) -> str:
    delivery = Delivery(record, tracker)
    if not delivery.state["finished"] and not tracker.missing():
        try:
            delivery.finish()
        except TrackingError as error:
            return f"not sent: {error}"
    return _state(record, tracker)
