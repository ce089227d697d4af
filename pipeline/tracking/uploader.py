"""Sending records to trackers, in a process of its own: while a run goes on, or afterwards whatever is missing of all of them.

Whoever dies when, every row is there once in the end (``pipeline.tracking.delivery``).
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.tracking import reported
from pipeline.tracking.delivery import Delivery, Tracker, Unreachable, Waiting
from pipeline.tracking.run_log import Record, TrackingError, all_records, lock, root

POLL = 0.1  # seconds between looks at the run


def _nothing(evaluation: Path, files: Path) -> None:
    """Draw nothing."""


def follow(folder: Path, trackers: Sequence[Tracker], every: float, patience: float, draw: reported.Draw = _nothing) -> None:
    """Send a run's record while the run goes on, and the rest when it has ended.

    Args:
        folder: the record.
        trackers: where to; those that are not set up are left out.
        every: seconds between deliveries, and until what failed is tried again.
        patience: seconds after the run's end until what could not be sent is left for ``ship``; this process ends then, whatever
            it hangs in.
        draw: writes pictures of an evaluation.
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
            if deliveries:
                reported.draw(folder, draw)
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


def ship(trackers: Sequence[Tracker], draw: reported.Draw = _nothing) -> None:
    """Send whatever is missing of every run that has ended, oldest first; prints a line for each record and tracker.

    Args:
        trackers: where to.
        draw: writes pictures of an evaluation.

    Raises:
        TrackingError: not everything could be sent.
    """
    records, wrong = all_records()
    left, away = len(wrong), set[str]()
    print("\n".join(wrong), end="\n" if wrong else "")
    for record in records:
        with lock(record.folder / "sending") as locked:
            if locked and not _running(record):
                reported.draw(record.folder, draw)
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
