"""Sending records: every row once, whoever dies when; what is damaged is named and the rest goes on."""

import threading
import time
from pathlib import Path

import pytest

from pipeline.files import write_atomic
from pipeline.tracking import uploader
from pipeline.tracking.delivery import Delivery, Unreachable
from pipeline.tracking.run_log import TrackingError, lock
from pipeline.tracking.uploader import follow, overview, ship
from tests.support.memory_tracker import Memory, begun, curves, ended, steps_of

PATIENCE = 3600.0  # seconds: for ever


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


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
