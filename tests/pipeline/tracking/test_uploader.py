"""Sending records: every row once, whoever dies when; upstream runs first; what is damaged is named and the rest goes on."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.files import write_atomic
from pipeline.tracking import run_log, uploader
from pipeline.tracking.run_log import Record, RunInfo, TrackingError, all_records, lock
from pipeline.tracking.uploader import Delivery, Unreachable, follow, overview, rows_after, ship
from tests.support.made_runs import write_run

PATIENCE = 3600.0  # seconds: for ever


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


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


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


def steps_after(path, last=-1):
    return [step for rows in rows_after(path, last) for step, _ in rows]


def test_whole_rows_are_read_from_where_the_last_reading_ended(tmp_path):
    file = tmp_path / "curves.csv"
    file.write_text("step,loss,a/b\n0,1.5,2\n1,nan,3\n2,1e-3")
    (rows,) = rows_after(file, -1)
    assert rows[0] == (0, {"loss": 1.5, "a/b": 2.0}) and rows[1][0] == 1 and len(rows) == 2
    assert not steps_after(file, 1)
    with file.open("a") as opened:
        opened.write(",4\n3,1,1\n")
    assert steps_after(file, 1) == [2, 3]


@pytest.mark.parametrize("text", ["", "step", "step,loss\n", "step,loss\n0"])
def test_a_file_that_has_only_begun_has_no_rows(tmp_path, text):
    (tmp_path / "curves.csv").write_text(text)
    assert not steps_after(tmp_path / "curves.csv")


def test_many_rows_come_in_portions(tmp_path, monkeypatch):
    monkeypatch.setattr(uploader, "ROWS", 4)
    file = tmp_path / "curves.csv"
    file.write_text("step,loss\n" + "".join(f"{i},{i}\n" for i in range(10)))
    assert [[step for step, _ in rows] for rows in rows_after(file, -1)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_file_that_was_set_back_gives_each_step_once(tmp_path):
    """A run goes on from a snapshot: rows are gone and written again."""
    file = tmp_path / "curves.csv"

    def write(steps):
        file.write_text("step,loss\n" + "".join(f"{step},1.5\n" for step in range(steps)))

    write(6)
    assert steps_after(file) == list(range(6))
    for length in (2, 4, 6):
        write(length)
        assert not steps_after(file, 5)
    write(9)
    assert steps_after(file, 5) == [6, 7, 8]


def test_validations_are_sent_as_they_happen_beside_the_curves(here):
    tracker, record = Memory(), begun()
    delivery = Delivery(record, tracker)
    for steps in ([0], [0, 1, 2]):
        curves(record, 0, 1)
        curves(record, *steps, name="validation.csv", value=0.5)
        curves(record, *steps, name="backbone/validation.csv", value=2.0)
        delivery.advance(Path(record.facts["out"]))
        rows = tracker.of("warmup")["rows"]
        assert {step: row["loss"] for (series, step), row in rows.items() if series == "validation"} == {s: s * 0.5 for s in steps}
        assert {step for series, step in rows if series == "backbone/validation"} == set(steps)
        assert {step for series, step in rows if series == ""} == {0, 1}
    assert max(tracker.received.values()) == 1  # nothing twice
    record.finish("completed")
    assert (record.files / "validation.csv").is_file()


@pytest.mark.parametrize(("ill", "said"), [({}, False), ({"confidence": 0.01}, True), ({"confidence": 0.99}, True)])
def test_what_is_wrong_with_a_training_goes_along_as_text(here, ill, said):
    seen = []

    class Reading(Memory):
        def end(self, facts, files):
            seen.extend(file.read_text() for file in files.rglob("health.md"))

    record = begun()
    write_run(Path(record.facts["out"]), **ill)
    record.finish("completed")
    Delivery(record, Reading()).finish()
    assert [text.startswith("- warmup: confidence uniform: mean confidence ends at 0.") for text in seen] == [True] * said


def test_a_row_that_does_not_fit_its_header_is_an_error(tmp_path):
    (tmp_path / "curves.csv").write_text("step,loss\n0,1,2\n")
    with pytest.raises(ValueError):
        steps_after(tmp_path / "curves.csv")


def test_shipping_sends_everything_once_and_a_second_time_nothing(here, capsys):
    tracker, record = Memory(), ended(steps=range(450))
    curves(record, 0, 1, name="backbone/curves.csv")
    record.finish("completed")
    ship([tracker])
    run = tracker.of("warmup")
    assert steps_of(run) == [0, 1, *range(450)] and [series for series, _ in run["rows"]][:3] == ["backbone", "backbone", ""]
    assert run["ended"] == ["completed"] and "memory: sent\neverything is sent\n" in capsys.readouterr().out
    ship([Memory(), tracker])  # a new object of the same name, as a new process has it
    assert run["begun"] == run["created"] == 1


def test_upstream_runs_are_made_first_and_named(here):
    ended("prepare", 0)
    ended("backbone", 1, ["outputs/prepare"])
    ended("warmup", 3, ["outputs/backbone"])
    tracker = Memory()
    warmup = all_records()[0][-1]
    Delivery(warmup, tracker).finish()  # the last one alone
    assert tracker.order == ["prepare", "backbone", "warmup"]
    assert not tracker.of("prepare")["rows"] and steps_of(tracker.of("warmup")) == [0, 1, 2]
    ship([tracker])
    identities = {run["stage"]: identity for identity, run in tracker.runs.items()}
    assert [tracker.of(s)["parent"] for s in identities] == ["", identities["prepare"], identities["backbone"]]
    assert all(run["created"] == 1 and run["ended"] == ["completed"] for run in tracker.runs.values())


def test_a_child_waits_while_another_process_sends_its_upstream_run(here):
    parent = ended("prepare", 0)
    child = ended("backbone", 1, ["outputs/prepare"])
    tracker = Memory()
    with lock(parent.folder / "sending"), pytest.raises(TrackingError, match="waits for prepare-1"):
        Delivery(child, tracker).finish()
    Delivery(child, tracker).finish()
    assert tracker.order == ["prepare", "backbone"]


def test_a_child_does_not_wait_for_an_upstream_run_that_was_made_already(here):
    parent = ended("prepare", 0)
    child = ended("backbone", 1, ["outputs/prepare"])
    tracker = Memory()
    identity = Delivery(parent, tracker).created()
    with lock(parent.folder / "sending"):  # its own sender goes on with it
        Delivery(child, tracker).finish()
    assert tracker.of("backbone")["parent"] == identity


@pytest.mark.parametrize("damaged", [False, True])
def test_an_upstream_run_that_was_forgotten_or_damaged_is_done_without(here, damaged):
    parent = ended("prepare", 0)
    child = ended("backbone", 1, ["outputs/prepare"])
    if damaged:
        (parent.folder / "record.json").write_text("{")
    else:
        parent.folder.rename(here / "gone")
    tracker = Memory()
    Delivery(child, tracker).finish()
    assert tracker.of("backbone")["parent"] == ""


@pytest.mark.parametrize("kind", [Memory, Forgetful])
def test_what_one_sender_has_left_the_next_one_sends(here, kind):
    record, tracker = ended(steps=range(500)), kind()
    send, sent = tracker.scalars, []

    def broken(series, rows):
        if len(sent) == 2:
            raise TrackingError("away")
        sent.append(rows)
        send(series, rows)

    tracker.scalars = broken
    with pytest.raises(TrackingError):
        Delivery(record, tracker).finish()
    tracker.scalars = send
    Delivery(record, tracker).finish()
    assert steps_of(tracker.of("warmup")) == list(range(500)) and tracker.of("warmup")["created"] == 1


@pytest.mark.parametrize("kind", [Memory, Forgetful])
def test_a_sender_that_takes_over_leaves_every_row_once(here, kind):
    record, tracker = begun(), kind()
    curves(record, 0, 1)
    Delivery(record, tracker).advance(Path(record.facts["out"]))
    curves(record, 0, 1, 2)
    record.finish("completed")
    Delivery(record, tracker).finish()
    assert steps_of(tracker.of("warmup")) == [0, 1, 2] and tracker.of("warmup")["created"] == 1


def test_a_killed_run_is_sent_as_such_and_goes_on_when_it_is_run_again(here):
    record, tracker = begun(), Memory()
    curves(record, 0, 1)
    ship([tracker])
    assert tracker.of("warmup")["ended"] == ["killed"] and steps_of(tracker.of("warmup")) == [0, 1]
    ship([tracker])
    assert tracker.of("warmup")["ended"] == ["killed"]
    curves(record, 0, 1, 2, 3)
    record.finish("completed")
    ship([tracker])
    run = tracker.of("warmup")
    assert run["ended"] == ["killed", "completed"] and steps_of(run) == [0, 1, 2, 3] and run["created"] == 1


def test_without_a_server_everything_waits(here, capsys):
    tracker, record = Memory(), ended()
    tracker.absent = "no server is configured"
    with pytest.raises(TrackingError, match=r"1 could not be sent; they wait in \.tracking"):
        ship([tracker])
    overview([tracker])
    assert capsys.readouterr().out.count("memory: no server is configured") == 2
    assert not tracker.runs and not (record.folder / "sent").exists()


def test_a_server_that_does_not_answer_is_asked_once(here, capsys):
    for order, stage in enumerate(("prepare", "backbone", "extract")):
        ended(stage, order)
    dead, well = Memory("dead"), Memory("well")
    dead.fail = Unreachable("no answer")
    with pytest.raises(TrackingError, match="3 could not be sent"):
        ship([dead, well])
    told = capsys.readouterr().out
    assert told.count("dead: not sent: no answer") == 1 and told.count("dead: not sent: as above") == 2
    assert sum(run["begun"] for run in dead.runs.values()) == 1 and len(well.runs) == 3


@pytest.mark.parametrize("error", [TrackingError("refused"), KeyError("token"), OSError(28, "No space left on device")])
def test_an_error_with_one_record_does_not_stop_the_others(here, capsys, monkeypatch, error):
    for order, stage in enumerate(("prepare", "backbone")):
        ended(stage, order)
    tracker = Memory()
    create = tracker.create
    monkeypatch.setattr(tracker, "create", lambda facts, parent: create(facts, parent) if facts["order"] else _raise(error))
    with pytest.raises(TrackingError, match="1 could not be sent"):
        ship([tracker])
    assert tracker.of("backbone")["ended"] == ["completed"]
    assert str(error) in capsys.readouterr().out


def _raise(error):
    raise error


@pytest.mark.parametrize("file", ["record.json", "end.json", "sent/memory.json"])
def test_a_damaged_record_is_named_and_the_others_are_sent(here, capsys, file):
    for order, stage in enumerate(("prepare", "backbone")):
        ended(stage, order)
    write_atomic(Path(".tracking/prepare-1") / file, b'{"run": ')
    tracker = Memory()
    for _ in range(2):
        with pytest.raises(TrackingError, match="1 could not be sent"):
            ship([tracker])
        assert f".tracking/prepare-1/{file} is damaged" in capsys.readouterr().out
    assert tracker.of("backbone")["ended"] == ["completed"] and len(tracker.runs) == 1
    overview([tracker])
    assert f"{file} is damaged" in capsys.readouterr().out


def test_a_record_that_another_process_sends_is_left_to_it(here, capsys):
    record, tracker = ended(), Memory()
    with lock(record.folder / "sending"), pytest.raises(TrackingError):
        ship([tracker])
    assert "another process is sending it" in capsys.readouterr().out and not tracker.runs


def test_two_who_ship_at_once_send_everything_once(here):
    for order, stage in enumerate(("prepare", "backbone", "extract", "warmup")):
        ended(stage, order, steps=range(50))
    one, two = Memory(), Memory()  # one object a process
    two.runs = one.runs
    both = threading.Barrier(2)  # each makes its first run while the other one does

    def all_of_it(tracker):
        slow = tracker.create
        tracker.create = lambda facts, parent: (tracker.order or both.wait(), slow(facts, parent))[1]
        while True:
            try:
                return ship([tracker])
            except TrackingError:  # the other one is sending it
                time.sleep(0.02)

    threads = [threading.Thread(target=all_of_it, args=(tracker,)) for tracker in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.order and two.order and len(one.runs) == 4
    assert all(steps_of(run) == list(range(50)) and run["created"] == 1 for run in one.runs.values())


def test_a_running_record_is_left_alone(here, capsys):
    record, tracker = begun(), Memory()
    with lock(record.folder / "lock"):
        ship([tracker])
    assert not tracker.runs and "running" in capsys.readouterr().out


def test_there_may_be_no_records(here, capsys):
    overview([Memory()])
    ship([Memory()])
    assert capsys.readouterr().out == "no records\nno records\n"


def test_following_sends_rows_while_they_come_and_ends_with_the_run(here):
    record, tracker = begun(), Memory()
    with lock(record.folder / "lock"):
        thread = threading.Thread(target=follow, args=(record.folder, [tracker], 0.05, PATIENCE))
        thread.start()
        for length in (1, 3, 6):
            curves(record, *range(length))
            wait_for(lambda n=length: tracker.runs and len(tracker.of("warmup")["rows"]) == n)
        record.finish("completed")
    thread.join()
    assert tracker.of("warmup")["ended"] == ["completed"]
    assert steps_of(tracker.of("warmup")) == list(range(6)) and tracker.of("warmup")["begun"] == 1


def wait_for(condition, patience=600.0):
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_following_outlives_errors_of_one_tracker(here):
    record, broken, well = begun(), Memory("broken"), Memory("well")
    broken.fail = RuntimeError("a bug of its library")
    with lock(record.folder / "lock"):
        thread = threading.Thread(target=follow, args=(record.folder, [broken, well], 0.05, PATIENCE))
        thread.start()
        curves(record, 0, 1)
        wait_for(lambda: well.runs and len(well.of("warmup")["rows"]) == 2)
        record.finish("completed")
    wait_for(lambda: well.of("warmup")["ended"])
    broken.fail = None
    thread.join()
    assert steps_of(broken.of("warmup")) == [0, 1] and broken.of("warmup")["ended"] == ["completed"]


def test_following_with_a_damaged_state_serves_the_other_trackers(here):
    record, one, two = ended(), Memory("one"), Memory("two")
    write_atomic(record.folder / "sent/one.json", b"{")
    with pytest.raises(TrackingError):
        follow(record.folder, [one, two], 0.05, PATIENCE)
    assert not one.runs and two.of("warmup")["ended"] == ["completed"]


def test_following_a_killed_run_gathers_and_sends_what_there_was(here):
    record, tracker = begun(), Memory()
    curves(record, 0, 1)
    follow(record.folder, [tracker], 0.05, PATIENCE)
    assert tracker.of("warmup")["ended"] == ["killed"] and steps_of(tracker.of("warmup")) == [0, 1]
    assert (record.files / "curves.csv").is_file()


def test_following_without_a_server_ends_at_once(here):
    record, tracker = begun(), Memory()
    tracker.absent = "no server"
    with lock(record.folder / "lock"):
        follow(record.folder, [tracker], 0.05, PATIENCE)
    assert not tracker.runs


def test_one_sender_sends_a_row_once(here):
    record, tracker = begun(), Memory()
    delivery = Delivery(record, tracker)
    for length in (1, 300, 500):
        curves(record, *range(length))
        delivery.advance(Path(record.facts["out"]))
    record.finish("completed")
    delivery.finish()
    assert len(tracker.received) == 500 and set(tracker.received.values()) == {1}


def test_the_run_learns_while_a_tracker_does_not_take_what_it_is_sent(here):
    record, tracker = begun(), Memory()
    curves(record, 0)
    tracker.fail = Unreachable("no answer")
    with lock(record.folder / "lock"):
        thread = threading.Thread(target=follow, args=(record.folder, [tracker], 0.05, PATIENCE))
        thread.start()
        wait_for(record.failing.is_file)
        tracker.fail = None
        wait_for(lambda: not record.failing.is_file())
        record.finish("completed")
    thread.join()
    assert steps_of(tracker.of("warmup")) == [0] and not record.failing.is_file()


def test_waiting_for_another_sender_is_no_failure(here, capsys):
    parent = ended("prepare", 0)
    child = ended("backbone", 1, ["outputs/prepare"])
    log = uploader._Log(child.failing)
    with lock(parent.folder / "sending"):
        assert not log.tried("memory", Delivery(child, Memory()).finish)
    assert not child.failing.is_file() and "waits for prepare-1" in capsys.readouterr().out
