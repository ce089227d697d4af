"""Records of runs: what they hold, which run they belong to, who their parent is, and that they never hurt the run."""

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.files import write_atomic, write_json
from pipeline.tracking import reported, run_log
from pipeline.tracking.run_log import Record, RunInfo, TrackingError, all_records, lock, recorded


class Sender:
    """In place of the process that sends."""

    def __init__(self, status=0):
        self.status = status

    def wait(self, timeout):
        if self.status is None:
            raise subprocess.TimeoutExpired("sender", timeout)
        return self.status


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace with tracking on, without senders."""
    monkeypatch.chdir(tmp_path)
    for name in (run_log.SWITCH, "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_log, "_start_sender", lambda record, config: Sender())
    return tmp_path


def facts(stage="warmup", order=3, identity="a", steps=5, inputs=(), out=""):
    settings = {f"{stage}.run": {"out": out or f"outputs/{stage}", "steps": steps, "name": "x y"}}
    folders = [Path(name) for name in inputs]
    return RunInfo(stage, order, "smoke", identity * 64, "c" * 64, settings, Path(out or f"outputs/{stage}"), folders)


def run(known, write=lambda out: None):
    """A run that completes, and leaves its settings beside its output as the launcher does."""
    with recorded(known, ""):
        write(known.out)
        write_atomic(known.out / "config.gin", run_log.gin_text(known.settings).encode())


def only():
    (record,), wrong = all_records()
    assert not wrong
    return record


def test_a_record_holds_facts_and_copies_of_what_is_reported(here):
    def write(out):
        write_atomic(out / "curves.csv", b"step,loss\n0,1\n")
        write_atomic(out / "backbone/curves.csv", b"step,loss\n0,2\n")
        write_json(out / "metrics.json", {"steps": 1})
        write_atomic(out / "puzzles.png", b"png")
        write_atomic(out / "model.safetensors", b"weights")
        write_json(out / "model.json", {"sha256": {"model.safetensors": "d" * 64}})

    run(facts(), write)
    record = only()
    assert record.facts["settings"] == {"warmup.run.out": "outputs/warmup", "warmup.run.steps": "5", "warmup.run.name": "x y"}
    assert (record.facts["stage"], record.facts["preset"], record.facts["parent"]) == ("warmup", "smoke", "")
    copies = {str(file.relative_to(record.files)) for file in record.files.rglob("*") if file.is_file()}
    assert copies == {"config.gin", "config.yaml", "curves.csv", "backbone/curves.csv", "metrics.json", "puzzles.png"}
    model = {"path": "outputs/warmup/model.safetensors", "sha256": "d" * 64, "bytes": 7}
    assert record.end == {"status": "completed", "models": [model]}


def test_how_a_run_ends_is_told(here):
    for number, error in enumerate((ValueError, KeyboardInterrupt)):
        with pytest.raises(error), recorded(facts(identity=str(number)), ""):
            assert only().end["status"] == "running" if number == 0 else True
            raise error
    assert [record.end["status"] for record in all_records()[0]] == ["failed", "stopped"]


def test_switched_off_it_leaves_nothing(here, monkeypatch):
    monkeypatch.setenv(run_log.SWITCH, "off")
    run(facts())
    assert not (here / ".tracking").exists()


def test_a_run_that_did_not_complete_continues_its_record_and_one_that_did_does_not(here):
    with pytest.raises(ValueError), recorded(facts(), ""):
        raise ValueError
    first = only()
    run(facts())
    assert only().folder == first.folder and only().facts["id"] == first.facts["id"] and only().end["status"] == "completed"
    run(facts())
    run(facts(identity="b"))
    found = all_records()[0]
    assert len(found) == 3 and len({record.facts["id"] for record in found}) == 3


def test_two_workspaces_make_different_records_of_the_same_run(here, monkeypatch, tmp_path):
    run(facts())
    (tmp_path / "other").mkdir()
    ours = only().facts["id"]
    monkeypatch.chdir(tmp_path / "other")
    run(facts())
    assert only().facts["id"] != ours


CHAIN = {
    "prepare": [],
    "backbone": ["prepare"],
    "extract": ["prepare", "backbone"],
    "warmup": ["backbone", "extract"],
    "joint": ["backbone", "extract", "warmup"],
    "finetune": ["prepare", "backbone", "joint"],
    "controls": ["prepare", "backbone", "extract", "warmup", "joint"],
    "evaluate": ["prepare", "backbone", "warmup", "joint", "finetune", "controls"],
    "report": ["backbone", "evaluate", "warmup", "joint"],
}


def test_the_parent_is_the_run_that_wrote_the_inputs(here):
    for order, (stage, inputs) in enumerate(CHAIN.items()):
        run(facts(stage, order, inputs=[f"outputs/{name}" for name in (*inputs, stage)]))
    parents = {record.facts["stage"]: record.facts["parent"].partition("-")[0] for record in all_records()[0]}
    assert parents == {
        "prepare": "", "backbone": "prepare", "extract": "backbone", "warmup": "extract", "joint": "warmup", "finetune": "joint",
        "controls": "joint", "evaluate": "finetune", "report": "evaluate",
    }  # fmt: skip


def test_of_runs_with_the_same_settings_the_newest_is_the_parent(here):
    run(facts("prepare", 0))
    run(facts("prepare", 0, steps=6, out="elsewhere"))
    run(facts("prepare", 0))
    run(facts("backbone", 1, inputs=["outputs/prepare"]))
    assert all_records()[0][-1].facts["parent"].endswith("-3")


def test_the_record_of_a_run_by_hand_names_no_place(here, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    place = str(here / "out")
    settings = {"warmup.run": {"out": place, "raw": "/home/somebody/raw"}}
    with recorded(RunInfo("warmup", 3, "smoke", "a" * 64, "c" * 64, settings, Path(place), []), ""):
        pass
    known = only()
    assert known.facts["settings"] == {"warmup.run.out": "./out", "warmup.run.raw": "~/raw"} and known.facts["shown_out"] == "out"
    for file in known.files.iterdir():
        assert str(here) not in file.read_text() and "somebody" not in file.read_text()


def test_what_a_killed_run_wrote_is_gathered_unless_another_run_writes_there_now(here):
    def killed(known, content):
        folder = Path(".tracking") / f"warmup-{known.identity[:12]}-1"
        folder.mkdir(parents=True)
        Record(folder).begin(known)
        write_atomic(known.out / "curves.csv", content)
        return Record(folder)

    first = killed(facts(), b"step,loss\n0,1\n")
    assert first.end == {"status": "killed", "models": []}
    first.salvage()
    assert (first.files / "curves.csv").read_bytes() == b"step,loss\n0,1\n"
    second = killed(facts(identity="b"), b"step,loss\n0,2\n")
    first.salvage()
    second.salvage()
    assert [(r.files / "curves.csv").read_bytes()[-2:] for r in (first, second)] == [b"1\n", b"2\n"]
    write_atomic(Path("outputs/warmup/config.gin"), b"of a run without a record")
    write_atomic(Path("outputs/warmup/curves.csv"), b"step,loss\n0,3\n")
    second.salvage()
    assert (second.files / "curves.csv").read_bytes()[-2:] == b"2\n"


def test_looking_at_a_run_does_not_disturb_others_who_look(here):
    (here / "lock").touch()
    with lock(here / "lock", shared=True) as one, lock(here / "lock", shared=True) as two:
        assert one and two
        with lock(here / "lock") as three:
            assert not three
    with lock(here / "lock") as one, lock(here / "lock", shared=True) as two:
        assert one and not two


def test_a_lock_is_waited_for(here, monkeypatch):
    holding, tried, released = threading.Event(), threading.Event(), []

    def hold():
        with lock(here / "lock"):
            holding.set()
            tried.wait()
            released.append(True)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    monkeypatch.setattr(run_log.time, "sleep", lambda seconds: tried.set())
    with lock(here / "lock", patience=math.inf) as held:
        assert held and released
    thread.join()


def test_a_run_that_begins_again_waits_for_those_who_look_at_what_it_left(here, monkeypatch):
    looking, tried = threading.Event(), threading.Event()
    folder = Path(".tracking") / f"warmup-{'a' * 12}-1"
    folder.mkdir(parents=True)
    Record(folder).begin(facts())

    def look():
        with lock(folder / "lock", shared=True):
            looking.set()
            tried.wait()

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    monkeypatch.setattr(run_log.time, "sleep", lambda seconds: tried.set())
    run(facts())
    thread.join()
    assert only().folder == folder and only().end["status"] == "completed"


HOLD = """
import sys, time
from pathlib import Path
from pipeline.tracking.run_log import lock
with lock(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(600)
"""


def test_the_same_run_elsewhere_at_the_same_time_has_a_record_of_its_own(here):
    folder = Path(".tracking") / f"warmup-{'a' * 12}-1"
    folder.mkdir(parents=True)
    Record(folder).begin(facts())
    other = subprocess.Popen([sys.executable, "-c", HOLD, folder / "lock"], stdout=subprocess.PIPE, env=environment())
    assert other.stdout.readline() == b"True\n" and Record(folder).end["status"] == "running"
    run(facts())
    assert sorted(record.end["status"] for record in all_records()[0]) == ["completed", "running"]
    other.kill()
    other.communicate()
    assert Record(folder).end["status"] == "killed"


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(run_log.__file__).parents[2])}


def test_where_nothing_can_be_written_the_run_goes_on(here, capsys):
    (here / ".tracking").write_text("a file in the way")
    run(facts(), lambda out: write_atomic(out / "done", b""))
    told = capsys.readouterr()
    assert (here / "outputs/warmup/done").is_file() and told.out == ""
    assert len(told.err.splitlines()) == 1 and told.err.startswith("tracking: ") and "this run leaves no record" in told.err


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["write_json", "write_atomic", "_start_sender", "_parent", "revision"])
def test_a_full_disk_at_the_start_is_one_line(here, capsys, monkeypatch, what):
    monkeypatch.setattr(run_log, what, full)
    known = facts()
    with recorded(known, ""):
        write_json(known.out / "done", 1)
    told = capsys.readouterr().err.splitlines()
    assert known.out.is_dir() and told[0].startswith("tracking: OSError") and len(told) <= 2


def test_a_full_disk_at_the_end_is_one_line(here, capsys, monkeypatch):
    def write(out):
        write_atomic(out / "curves.csv", b"step,loss\n0,1\n")
        monkeypatch.setattr(reported.shutil, "copyfile", full)

    run(facts(), write)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "No space left on device; how this run ended is not in its record" in told[0]
    assert only().end["status"] == "killed"


def test_an_error_of_the_run_is_not_hidden_by_one_of_tracking(here, capsys, monkeypatch):
    with pytest.raises(ZeroDivisionError), recorded(facts(), ""):
        monkeypatch.setattr(run_log, "write_json", full)
        raise ZeroDivisionError
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"stage": "prepare"}', "null"])
def test_a_damaged_record_is_named_and_does_not_stop_others(here, damage):
    run(facts("prepare", 0))
    run(facts("extract", 2))
    file = only_of("prepare").folder / "record.json"
    file.write_text(damage)
    run(facts("backbone", 1, inputs=["outputs/prepare", "outputs/extract"]))
    found, wrong = all_records()
    assert {record.facts["stage"] for record in found} == {"extract", "backbone"}
    assert len(wrong) == 1 and str(file) in wrong[0] and "delete its folder" in wrong[0]
    run(facts("prepare", 0))  # the same run again does not mind
    assert len(all_records()[0]) == 3


def only_of(stage):
    return next(record for record in all_records()[0] if record.facts["stage"] == stage)


def test_a_damaged_end_is_named(here):
    run(facts())
    (only().folder / "end.json").write_text("{")
    with pytest.raises(TrackingError, match=r"end.json is damaged .*; delete it"):
        _ = only().end
    run(facts())
    assert only().end["status"] == "completed"


@pytest.mark.parametrize("case", ["it fails", "a tracker fails", "it says nothing"])
def test_what_could_not_be_sent_is_told_in_one_line(here, capsys, monkeypatch, case):
    monkeypatch.setattr(run_log, "GRACE", 0.1 if case == "it says nothing" else math.inf)

    def start(record, config):
        if case == "a tracker fails":
            record.failing.touch()
        return Sender(1 if case == "it fails" else None)

    monkeypatch.setattr(run_log, "_start_sender", start)
    run(facts())
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and "nothing is lost: python -m stages track --ship" in told[0] and only().folder.name in told[0]


def test_a_sender_that_is_at_work_is_waited_for(here, capsys, monkeypatch):
    class Slow:
        calls = 0

        def wait(self, timeout):
            self.calls += 1
            if self.calls < 20:
                raise subprocess.TimeoutExpired("sender", timeout)
            return 0

    monkeypatch.setattr(run_log, "GRACE", math.inf)
    monkeypatch.setattr(run_log, "_start_sender", lambda record, config: Slow())
    run(facts())
    assert capsys.readouterr().out == ""


def test_an_interrupt_while_a_finished_run_waits_does_not_undo_it(here, capsys, monkeypatch):
    class Waiting:
        def wait(self, timeout):
            raise KeyboardInterrupt

    monkeypatch.setattr(run_log, "_start_sender", lambda record, config: Waiting())
    run(facts())
    assert only().end["status"] == "completed" and "not everything is sent" in capsys.readouterr().out


def test_records_of_an_experiment_are_kept_in_the_main_repository(here, monkeypatch, tmp_path):
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", "wide-lamp")
    run(facts())
    assert (tmp_path / ".tracking").is_dir() and not (tmp_path / "copy/.tracking").exists()
    assert only().facts["experiment"] == "wide-lamp"


def test_the_same_settings_make_the_same_files(here):
    run(facts())
    first = {file.name: file.read_bytes() for file in only().files.iterdir()}
    assert json.loads((only().folder / "record.json").read_text())["written"] == run_log.sha256(Path("outputs/warmup/config.gin"))
    run(facts())
    assert {file.name: file.read_bytes() for file in all_records()[0][1].files.iterdir()} == first
