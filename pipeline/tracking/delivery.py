"""One record's way to one tracker: its upstream runs first, every row once, and what is left of it when the run has ended.

``sent/<tracker>.json`` beside a record names its run at the tracker, and how the run ended once all of it has arrived. Until then a
sender that takes over sends all rows again: a tracker either stores a value under its run, step and name, however often it comes
(ClearML, MLflow, Weights & Biases online), or begins the run anew (TensorBoard, Weights & Biases offline).
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.diagnosis import diagnosis
from pipeline.files import write_atomic, write_json
from pipeline.tracking.run_log import Record, TrackingError, lock, read

Row = tuple[int, dict[str, float]]
SERIES = {"curves.csv": "", "validation.csv": "validation"}  # files of rows that grow with a run: what goes before their names
ROWS = 200  # of one delivery


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
