"""Sending records to trackers, in a process of its own: whoever dies when, every row is there once in the end.

``sent/<tracker>.json`` beside a record names its run at the tracker, and how the run ended once all of it has arrived. Until then a
sender that takes over sends all rows again: a tracker either stores a value under its run, step and name, however often it comes
(ClearML, Weights & Biases online), or begins the run anew (TensorBoard, Weights & Biases offline).
"""

import contextlib
import csv
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.diagnosis import diagnosis
from pipeline.errors import UserError
from pipeline.files import write_atomic, write_json
from pipeline.tracking.run_log import Record, TrackingError, all_records, lock, read, root

Row = tuple[int, dict[str, float]]
SERIES = {"curves.csv": "", "validation.csv": "validation"}  # files of rows that grow with a run: what goes before their names
POLL, ROWS = 0.1, 200  # seconds between looks at the run, rows of one delivery


class Unreachable(TrackingError):
    """A tracker does not answer: there is no use in trying it with the next record."""


class Waiting(TrackingError):
    """Another process is sending what has to be there first: a later attempt will do."""


class Tracker(Protocol):
    """Interface of where runs are reported. Methods return when what they send has arrived; TrackingError if it has not.

    Attributes:
        name: of its file under ``sent/``.
    """

    name: str

    def missing(self) -> str:
        """What has to be set up before anything can be sent; "" if nothing."""

    def create(self, facts: dict[str, Any], parent: str) -> str:
        """Make the run, or find it if it was made before; returns the tracker's id of it.

        Args:
            facts: what ``pipeline.tracking.run_log`` keeps of its start.
            parent: the tracker's id of the upstream stage's run, or "".
        """

    def begin(self, run: str, facts: dict[str, Any]) -> None:
        """Report to this run from now on; all its rows follow, also those that an earlier sender has sent."""

    def scalars(self, series: str, rows: Sequence[Row]) -> None:
        """Report rows of a curves file; ``series`` is its folder within the run's output, "" for the output itself, and for
        validations "validation" after that.
        """

    def end(self, facts: dict[str, Any], files: Path) -> None:
        """Report metrics, pictures and models of a run, and its ``status`` (``facts``); of one that was killed the status alone."""


class Delivery:
    """One record's way to one tracker."""

    def __init__(self, record: Record, tracker: Tracker) -> None:
        self.record, self.tracker = record, tracker
        self.file = record.folder / "sent" / f"{tracker.name}.json"
        self.state: dict[str, Any] = {"run": "", "ended": ""}
        if self.file.is_file():
            self.state |= read(self.file, "delete it to send the run again")
        self.begun = False
        self.last_steps: dict[str, int] = {}  # of each curves file, the last step that this process has sent

    def created(self) -> str:
        """The tracker's id of the run; it is made if need be, and its upstream runs before it."""
        if not self.state["run"]:
            name = self.record.facts["parent"]
            parent = _created(Record(self.record.folder.with_name(name)), self.tracker) if name else ""
            self._keep(run=self.tracker.create(self.record.facts, parent))
        return str(self.state["run"])

    def advance(self, source: Path) -> None:
        """Send the rows that ``source`` (the run's output folder, or the record's copy of it) has and the tracker has not."""
        if not self.begun:
            self.tracker.begin(self.created(), self.record.facts)
            self._keep(ended="")
            self.begun, self.last_steps = True, {}
        for file in (file for name in SERIES for file in sorted(source.rglob(name))):
            series = "/".join(part for part in (*file.parent.relative_to(source).parts, SERIES[file.name]) if part)
            for rows in rows_after(file, self.last_steps.get(series, -1)):
                self.tracker.scalars(series, rows)
                self.last_steps[series] = rows[-1][0]

    def finish(self) -> None:
        """Send everything that is still missing of a run that has ended."""
        end = self.record.end
        if end["status"] in ("running", self.state["ended"]):
            return
        self.advance(self.record.files)
        self.begun = False  # whatever comes of it: to be begun again
        if health := diagnosis.as_markdown(self.record.files, self.record.facts["stage"]):
            write_atomic(self.record.files / "health.md", health.encode())
        self.tracker.end({**self.record.facts, **end}, self.record.files)
        self._keep(ended=end["status"])

    def _keep(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self.file, self.state)


def _created(record: Record, tracker: Tracker) -> str:
    """The tracker's id of an upstream run; "" if it was forgotten or damaged."""
    try:
        _ = record.facts
    except TrackingError:
        return ""
    delivery = Delivery(record, tracker)
    if delivery.state["run"]:
        return delivery.created()
    with lock(record.folder / "sending") as locked:
        if not locked:
            raise Waiting(f"waits for {record.folder.name}, which another process sends")
        return Delivery(record, tracker).created()


def rows_after(file: Path, last: int) -> Iterator[list[Row]]:
    """Whole rows of a curves file whose steps come after ``last``, in portions.

    A run that was killed goes on from its last snapshot and writes rows again; the last line may be half written.
    """
    header, *lines = file.read_bytes().splitlines(keepends=True) or [b""]
    names = next(csv.reader([header.decode()]), [])
    whole = (line for line in lines if line.endswith(b"\n"))
    fresh = [_row(names, line) for line in whole if int(line.partition(b",")[0]) > last]
    yield from (fresh[start : start + ROWS] for start in range(0, len(fresh), ROWS))


def _row(names: list[str], line: bytes) -> Row:
    values = dict(zip(names, map(float, line.decode().strip().split(",")), strict=True))
    return int(values.pop("step")), values


def follow(folder: Path, trackers: Sequence[Tracker], every: float, patience: float) -> None:
    """Send a run's record while the run goes on, and the rest when it has ended.

    Args:
        folder: the record.
        trackers: where to; those that are not set up are left out.
        every: seconds between deliveries, and until what failed is tried again.
        patience: seconds after the run's end until what could not be sent is left for ``ship``; this process ends then, whatever
            it hangs in.
    """
    record, done = Record(folder), threading.Event()
    watch = threading.Thread(target=_end_after, args=(record, patience, done), daemon=True)
    watch.start()
    try:
        with lock(folder / "sending", patience=math.inf):
            configured = [tracker for tracker in trackers if not tracker.missing()]
            deliveries = list[Delivery]()
            log = _Log(record.failing)
            for tracker in configured:
                log.tried(tracker.name, lambda tracker=tracker: deliveries.append(Delivery(record, tracker)))
            while deliveries and _running(record):
                for delivery in deliveries:
                    log.tried(delivery.tracker.name, delivery.advance, Path(record.facts["out"]))
                _wait_for_end(record, every)
            if deliveries and record.end["status"] == "killed":  # what it wrote will be gone when it is run again
                log.tried("what the run wrote", record.salvage)
            while not all([log.tried(delivery.tracker.name, delivery.finish) for delivery in deliveries]):
                time.sleep(every)
            if len(deliveries) < len(configured):
                raise TrackingError("not everything could be sent")
    finally:
        done.set()
        watch.join()


def _running(record: Record) -> bool:
    with contextlib.suppress(TrackingError, OSError):
        return bool(record.end["status"] == "running")
    return False


def _end_after(record: Record, patience: float, done: threading.Event) -> None:
    """End this process ``patience`` seconds after the run, unless it is done by then."""
    while not done.wait(POLL) and _running(record):
        pass
    if not done.wait(patience):
        print(f"{time.strftime('%H:%M:%S')} given up after {patience:g} s", flush=True)
        os._exit(1)


def _wait_for_end(record: Record, patience: float) -> None:
    until = time.monotonic() + patience
    while _running(record) and time.monotonic() < until:
        time.sleep(POLL)


class _Log:
    """Attempts: what went wrong is printed once, not every time.

    Args:
        failing: a file that is there while the last attempt at anything went wrong: the run does not wait for this process then.
    """

    def __init__(self, failing: Path) -> None:
        self.failing = failing
        self.last: dict[str, str] = {}

    def tried(self, name: str, send: Callable[..., object], *arguments: Any) -> bool:
        """Send, print what came of it when that is news, and return whether it went well."""
        problem = ""
        try:
            send(*arguments)
        except Waiting as error:
            problem = _problem(error)
        except Exception as error:  # whatever a tracker's library raises: other trackers and later attempts go on
            problem = _problem(error)
            self.failing.touch()
        if problem != self.last.get(name, ""):
            print(f"{time.strftime('%H:%M:%S')} {name}: {problem or 'goes on'}", flush=True)
        self.last[name] = problem
        if not any(self.last.values()):
            self.failing.unlink(missing_ok=True)
        return not problem


def _problem(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def ship(trackers: Sequence[Tracker]) -> None:
    """Send whatever is missing of every run that has ended, oldest first; prints a line for each record and tracker.

    Raises:
        TrackingError: not everything could be sent.
    """
    records, wrong = all_records()
    left, away = len(wrong), set[str]()
    print("\n".join(wrong), end="\n" if wrong else "")
    for record in records:
        with lock(record.folder / "sending") as locked:
            for tracker in trackers:
                state = _shipped(record, tracker, away) if locked else "another process is sending it"
                left += state not in ("sent", "running")
                _print(record, tracker, state)
    if left:
        raise TrackingError(f"{left} could not be sent; they wait in {root()}")
    print("everything is sent" if records else "no records")


def overview(trackers: Sequence[Tracker]) -> None:
    """Print a line for each record and tracker: how the run ended and whether it was sent."""
    records, wrong = all_records()
    print("\n".join(wrong or ([] if records else ["no records"])), end="" if records and not wrong else "\n")
    for record in records:
        for tracker in trackers:
            _print(record, tracker, _state(record, tracker))


def _shipped(record: Record, tracker: Tracker, away: set[str]) -> str:
    """Send one record; says how far it came. A tracker that does not answer is noted as ``away`` and not asked again."""
    state = _state(record, tracker)
    if state in ("sent", "running") or tracker.missing():
        return state
    if tracker.name in away:
        return "not sent: as above"
    try:
        if record.end["status"] == "killed":
            record.salvage()
        Delivery(record, tracker).finish()
    except Unreachable as error:
        away.add(tracker.name)
        return f"not sent: {error}"
    except Exception as error:  # whatever a tracker's library raises: the other records go on
        return f"not sent: {_problem(error)}"
    return _state(record, tracker)


def _state(record: Record, tracker: Tracker) -> str:
    try:
        status, state = record.end["status"], Delivery(record, tracker).state
    except TrackingError as error:
        return str(error)
    if status == "running":
        return "running"
    return "sent" if state["ended"] == status else tracker.missing() or ("sent in part" if state["run"] else "not sent")


def _print(record: Record, tracker: Tracker, state: str) -> None:
    status = "damaged"
    with contextlib.suppress(TrackingError):
        status = record.end["status"]
    print(f"{record.folder.name:<28} {status:<10} {tracker.name}: {state}", flush=True)
