"""What a record keeps to be reported: copies, and pictures that are drawn once, by who sends it, and stop nothing."""

from pathlib import Path

import pytest

from pipeline.files import write_atomic, write_json
from pipeline.tracking import reported
from pipeline.tracking.uploader import follow, ship
from tests.support.memory_tracker import Memory, begun


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


class Showing(Memory):
    """A tracker that remembers the pictures and pages of runs that have ended."""

    def end(self, facts, files):
        super().end(facts, files)
        self.runs[self.now]["shown"] = sorted(file.name for file in files.iterdir() if file.suffix in (".gif", ".md", ".png"))


def evaluated(status="completed"):
    record = begun("evaluate", 7)
    write_json(Path("outputs/evaluate/metrics.json"), {"headline": "test"})
    write_json(Path("outputs/evaluate/trace.json"), {"rendering": "sudoku"})
    record.finish(status)
    return record


def drawing(calls):
    """Writes a GIF, and remembers what it was drawn from."""

    def draw(evaluation, files):
        calls.append(sorted(file.name for file in evaluation.iterdir()))
        write_atomic(files / "refinement.gif", b"GIF89a")

    return draw


def test_the_trace_waits_beside_the_copies_and_is_not_sent(here):
    record = evaluated()
    assert sorted(file.name for file in (record.folder / "traced").iterdir()) == ["metrics.json", "trace.json"]
    assert not list(record.files.rglob("trace.json")) and (record.files / "metrics.json").is_file()


def test_a_run_without_a_trace_has_nothing_to_draw(here):
    record, calls = begun(), []
    write_json(Path("outputs/warmup/metrics.json"), {"steps": 1})
    record.finish("completed")
    reported.draw(record.folder, drawing(calls))
    assert not calls and not (record.folder / "traced").exists()


@pytest.mark.parametrize("way", ["shipped", "followed"])
def test_an_evaluation_is_drawn_once_for_all_trackers(here, way):
    record, calls, trackers = evaluated(), [], [Showing("one"), Showing("two")]
    if way == "shipped":
        ship(trackers, drawing(calls))
    else:
        follow(record.folder, trackers, 0.05, 3600.0, drawing(calls))
    ship([*trackers, Showing("three")], drawing(calls))
    assert calls == [["metrics.json", "trace.json"]] and not (record.folder / "traced").exists()
    assert [tracker.of("evaluate")["shown"] for tracker in trackers] == [["refinement.gif"]] * 2


def test_a_picture_that_cannot_be_drawn_stops_no_record(here, capsys):
    def draw(evaluation, files):
        raise KeyError("rendering")

    record, tracker = evaluated(), Showing()
    ship([tracker], draw)
    assert tracker.of("evaluate")["ended"] == ["completed"] and tracker.of("evaluate")["shown"] == []
    said = capsys.readouterr().out
    assert f"{record.folder.name}: no picture of the refinement: KeyError: 'rendering'\n" in said and "everything is sent" in said


def test_pictures_are_still_and_moving_ones(tmp_path):
    for name in ("b.png", "a/c.gif", "d.md", "e.json"):
        write_atomic(tmp_path / name, b"")
    assert [file.relative_to(tmp_path).as_posix() for file in reported.pictures(tmp_path)] == ["a/c.gif", "b.png"]
