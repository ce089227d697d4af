"""One record's way to a tracker: whole rows, each once; upstream runs first; what is wrong with a training goes along."""

from pathlib import Path

import pytest

from pipeline.tracking import delivery
from pipeline.tracking.delivery import Delivery, rows_after
from pipeline.tracking.run_log import TrackingError, all_records, lock
from pipeline.tracking.uploader import ship
from tests.support.made_runs import write_run
from tests.support.memory_tracker import Forgetful, Memory, begun, curves, ended, steps_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


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
    monkeypatch.setattr(delivery, "ROWS", 4)
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


def test_one_sender_sends_a_row_once(here):
    record, tracker = begun(), Memory()
    delivery = Delivery(record, tracker)
    for length in (1, 300, 500):
        curves(record, *range(length))
        delivery.advance(Path(record.facts["out"]))
    record.finish("completed")
    delivery.finish()
    assert len(tracker.received) == 500 and set(tracker.received.values()) == {1}
