"""Trackers that remember what they were sent, records to be sent, and a trap for who calls somebody."""

from collections import Counter
from pathlib import Path

from pipeline.files import write_atomic
from pipeline.tracking import run_log
from pipeline.tracking.run_log import Record, RunInfo


class Memory:
    """A tracker that stores a value under its series and step, however often it comes."""

    def __init__(self, name="memory"):
        self.name, self.runs, self.order, self.now, self.fail, self.absent = name, {}, [], "", None, ""
        self.received = Counter()

    def missing(self):
        return self.absent

    def create(self, facts, parent):
        assert not parent or parent in self.runs
        self.order.append(facts["stage"])
        run = self.runs.setdefault(facts["id"], {"stage": facts["stage"], "parent": parent, "rows": {}, "ended": [], "begun": 0})
        run["created"] = run.get("created", 0) + 1
        return facts["id"]

    def begin(self, run, facts):
        self.now = run
        self.runs[run]["begun"] += 1

    def scalars(self, series, rows):
        if self.fail:
            raise self.fail
        self.received.update((self.now, series, step) for step, _ in rows)
        self.runs[self.now]["rows"] |= {(series, step): values for step, values in rows}

    def end(self, facts, files):
        if self.fail:
            raise self.fail
        self.runs[self.now]["ended"].append(facts["status"])

    def of(self, stage):
        return next(run for run in self.runs.values() if run["stage"] == stage)


class Forgetful(Memory):
    """A tracker that begins a run anew."""

    def begin(self, run, facts):
        super().begin(run, facts)
        self.runs[run]["rows"] = {}


def begun(stage="warmup", order=3, inputs=()):
    out = Path("outputs") / stage
    record = Record(Path(".tracking") / f"{stage}-1")
    record.folder.mkdir(parents=True)
    settings, folders = {f"{stage}.run": {"out": str(out)}}, [Path(name) for name in inputs]
    record.begin(RunInfo(stage, order, "smoke", "a" * 64, "c" * 64, settings, out, folders))
    return record


def curves(record, *steps, name="curves.csv", value=1.5):
    lines = "".join(f"{step},{step * value}\n" for step in steps)
    write_atomic(Path(record.facts["out"]) / name, f"step,loss\n{lines}".encode())


def ended(stage="warmup", order=3, inputs=(), steps=(0, 1, 2), status="completed"):
    record = begun(stage, order, inputs)
    curves(record, *steps)
    write_atomic(Path(record.facts["out"]) / "config.gin", run_log.gin_text({f"{stage}.run": {"out": f"outputs/{stage}"}}).encode())
    record.finish(status)
    return record


def steps_of(run):
    return [step for _, step in run["rows"]]


TRAP = """
import socket
def nobody(*address, **_):
    with open("called", "a") as file:
        file.write(f"{address}\\n")
    raise OSError("no network here")
socket.getaddrinfo = nobody
"""


def trap_sockets(site):
    """Have every interpreter whose path begins with a folder note in ``called`` whom it looks up, and reach nobody."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(TRAP)
