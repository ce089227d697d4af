"""A run on the terminal: which one, how fast, how its losses are drawn; on narrow terminals and plain ones, until it ends."""

import io
import os
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from pipeline.diagnosis import recorded, watching
from pipeline.diagnosis.watching import Moment, drawing, newest, rate, watch
from pipeline.errors import DataError
from stages.__main__ import main
from tests.conftest import ROOT
from tests.support.dvc import PATIENCE, wait_until
from tests.support.made_runs import columns, validations, write_record, write_run


def written(folder, at, *names):
    for name in names:
        os.utime(folder / name, (at, at))


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        ([(10.0, 100), (20.0, 150)], 5.0),
        ([(20.0, 150), (10.0, 100), (15.0, 140)], 5.0),
        ([(10.0, 100)], 0.0),
        ([], 0.0),
        ([(10.0, 100), (10.0, 100)], 0.0),
        ([(10.0, 900), (20.0, 100), (30.0, 200)], 10.0),  # killed, and begun again further back
        ([(10.0, 100), (30.0, 100)], 0.0),
    ],
)
def test_the_rate_is_that_between_two_moments(moments, expected):
    assert rate([Moment(*moment) for moment in moments]) == expected


def test_moments_are_when_rows_validations_and_snapshots_were_written(tmp_path):
    place = write_run(tmp_path / "outputs/warmup", ended=False, validation=validations(1.0, 0.9, steps=100))
    written(place, 1000.0, "curves.csv")
    written(place, 900.0, "validation.csv")
    for step, at in ((50, 800.0), (60, 850.0)):
        snapshot = tmp_path / f".scratch/warmup/0123/warmup/step-{step:09d}"
        snapshot.mkdir(parents=True)
        os.utime(snapshot, (at, at))
    (tmp_path / ".scratch/warmup/0123/warmup/step-000000070").symlink_to("gone")  # as one that is removed between two looks
    seen = set(watching.moments(tmp_path, place, "warmup"))
    assert seen == {Moment(1000.0, 200), Moment(900.0, 100), Moment(800.0, 50), Moment(850.0, 60)}
    assert rate([*seen]) == 150 / 200


@pytest.mark.parametrize(
    ("going", "times", "expected"),
    [
        ([], {"warmup": 1.0, "joint": 2.0}, "joint"),
        (["warmup"], {"warmup": 1.0, "joint": 2.0}, "warmup"),
        (["warmup", "joint"], {"warmup": 2.0, "joint": 1.0}, "warmup"),
    ],
)
def test_the_newest_run_is_drawn_and_one_that_goes_on_before_all_others(tmp_path, going, times, expected):
    for name, at in times.items():
        written(write_run(tmp_path / "outputs" / name, ended=name not in going), at, "curves.csv")
    assert newest(tmp_path) == (expected, tmp_path / "outputs" / expected)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"holds no run \(no curves.csv in it or below\); name a workspace"):
        newest(tmp_path)


@pytest.mark.parametrize("environment", [{"COLUMNS": "60", "TERM": "dumb"}, {"COLUMNS": "60", "PYTHONIOENCODING": "ascii"}])
def test_one_picture_fits_sixty_columns_of_a_plain_terminal(tmp_path, environment):
    place = write_run(tmp_path / "outputs/warmup", ended=False, grad_norm=3.0)
    write_record(tmp_path, place, {"loop.fit.steps": "350", "loop.fit.clip": "1.0"})
    (tmp_path / ".tracking/other").mkdir()
    (tmp_path / ".tracking/other/record.json").write_text("{")  # damaged: tracking names it
    command = [sys.executable, "-m", "stages", "watch", str(tmp_path), "--once"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "warmup: step 200 of 350" and all(len(line) <= 60 for line in lines) and "\x1b" not in done.stdout
    (header,) = [i for i, line in enumerate(lines) if line.startswith("step ")]
    assert [line.split()[0] for line in lines[header + 1 : header + 5]] == ["1", "2", "3", "4"]
    assert " ".join(lines[header + 5 :]).startswith("always clipped: 100% of the last 25 steps; median norm 3,")
    assert ("ascii" in environment.values()) <= done.stdout.isascii()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ended": True}, "ended"),
        ({"ended": False, "loss": [], **{name: [] for name in columns() if name != "loss"}}, "no row yet"),
        ({"ended": False}, "rate not known yet, newest row "),
    ],
)
def test_it_says_how_far_it_is(tmp_path, capsys, changed, said):
    write_run(tmp_path / "warmup", **{"validation": [], **changed})
    (tmp_path / "warmup/validation.csv").unlink()
    assert main(["watch", str(tmp_path / "warmup"), "--once"]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("age", "asks"), [(299.0, False), (301.0, True)])
def test_a_run_that_has_been_silent_for_long_is_doubted(tmp_path, age, asks):
    write_run(tmp_path, ended=False)
    run = recorded.run_at(tmp_path, "warmup", tmp_path)
    words = watching.pace(run, [Moment(0.0, 100), Moment(50.0, 200)], 50.0 + age)
    assert words.startswith("2 steps/s, ") == (run.planned == 0) and words.endswith("does it still run?") == asks


@pytest.mark.parametrize(("speed", "said"), [(2.0, "2 steps/s, 300 s left"), (0.25, "4 s a step, 2400 s left")])
def test_time_left_is_that_of_the_steps_that_are_planned(speed, said):
    run = recorded.Run("warmup", {"loss": [1.0] * 400}, planned=1000, ended=False)
    assert watching.pace(run, [Moment(0.0, 0), Moment(400 / speed, 400)], 400 / speed) == f"{said}, newest row 0 s ago"


def test_losses_share_one_scale():
    """The highest of all is as high as can be, the lowest as low, whatever its row."""
    heights = watching.BARS
    assert drawing([8.0, 4.0], 1.0, 8.0, heights)[0] == heights[-1] and drawing([2.0, 1.0], 1.0, 8.0, heights)[-1] == heights[0]
    assert drawing([float(2**i) for i in range(8)], 1.0, 128.0, heights) == heights


def test_a_run_is_watched_until_it_ends(tmp_path, monkeypatch):
    """Another thread plays the run: two more rows, then its end."""
    monkeypatch.setattr(watching, "EVERY", 0.05)
    write_run(tmp_path / "outputs/warmup", ended=False)
    screen = io.StringIO()
    watcher = threading.Thread(target=watch, args=(tmp_path, Console(file=screen, width=60)))
    watcher.start()

    def play(**changed):
        """As a phase writes: each file is whole, or as it was."""
        made = write_run(tmp_path / "made", **changed)
        for file in sorted(made.iterdir(), key=lambda file: file.name == "metrics.json"):
            os.replace(file, tmp_path / "outputs/warmup" / file.name)

    def seen(text):
        wait_until(lambda: text in screen.getvalue() or not watcher.is_alive(), text, pause=0.01)
        assert text in screen.getvalue()

    seen("step 200")
    longer = columns(202)
    play(ended=False, **longer)
    seen("step 202")
    play(**longer)
    watcher.join(PATIENCE)
    assert not watcher.is_alive() and screen.getvalue().rstrip().count("\nended") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_ends_it_without_a_word(tmp_path, monkeypatch, terminal):
    def interrupted(_):
        raise KeyboardInterrupt

    write_run(tmp_path, ended=False)
    monkeypatch.setattr(watching.time, "sleep", interrupted)
    screen = io.StringIO()
    watch(tmp_path, Console(file=screen, width=60, force_terminal=terminal))
    assert "step 200" in screen.getvalue()


def test_more_than_one_folder_is_refused(capsys):
    assert main(["watch", "a", "b"]) == 2
    assert capsys.readouterr().err == "error: watch looks at one folder, got 2: a b\n"
