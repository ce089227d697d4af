"""Progress outside a terminal: plain lines, no bar; by the clock, which tests turn by hand."""

import io
import sys
import threading

import pytest

from pipeline import progress
from pipeline.progress import Progress, tick, watched
from tests.support.dvc import PATIENCE

FIRST = progress.FIRST


@pytest.fixture
def now(monkeypatch, _no_line_by_time):
    """The clock, in seconds; the thread that watches it stands still."""
    time = [1000.0]
    monkeypatch.setattr(progress, "FIRST", FIRST)
    monkeypatch.setattr(progress, "clock", lambda: time[0])
    monkeypatch.setattr(progress, "PULSE", 1e6)
    return time


def lines(capsys):
    """What was printed; by time on standard error, where no stage says otherwise."""
    printed = capsys.readouterr()
    return (printed.out + printed.err).splitlines()


def test_lines_name_their_work_and_no_bar_is_drawn(capsys):
    with Progress("extract", 3, "row") as bar:
        bar.advance(2)
        bar.line("half way")
        bar.advance()
    assert capsys.readouterr() == ("extract: half way\n", "")


def test_the_first_line_by_time_comes_soon_and_later_ones_each_minute(capsys, now):
    with Progress("prepare", 1000, "puzzle") as bar:
        for _ in range(200):
            now[0] += 1
            bar.advance()
    assert lines(capsys) == [
        "prepare: 20 of 1000 | 1.0 puzzles/s, 980 s left",
        "prepare: 80 of 1000 | 1.0 puzzles/s, 920 s left",
        "prepare: 140 of 1000 | 1.0 puzzles/s, 860 s left",
        "prepare: 200 of 1000 | 1.0 puzzles/s, 800 s left",
    ]


@pytest.mark.parametrize(
    ("total", "done", "units", "seconds", "expected"),
    [
        (90, 0, 60, 30, "60 of 90 | 2.0 puzzles/s, 15 s left"),
        (0, 0, 60, 30, "60 | 2.0 puzzles/s, time left unknown"),
        (90, 80, 5, 50, "85 of 90 | 10.0 s a puzzle, 50 s left"),  # what was done before is no speed
        (4, 0, 1, 3600, "1 of 4 | 3600.0 s a puzzle, 10800 s left"),
        (90, 0, 0, 40, "0 of 90 | 40 s so far"),
        (0, 0, 0, 40, "0 | 40 s so far"),
        (90, 0, 3, 19.9, None),
    ],
)
def test_a_line_tells_count_rate_and_time_left(total, done, units, seconds, expected, capsys, now):
    with Progress("prepare", total, "puzzle", done=done) as bar:
        bar.done += units  # within the unit that follows
        now[0] += seconds
        tick()
    assert lines(capsys) == ([] if expected is None else [f"prepare: {expected}"])


def test_work_without_units_tells_how_long_it_takes(capsys, now):
    with Progress("load weights"):
        now[0] += 25
        tick()
    assert lines(capsys) == ["load weights: 25 s so far"]


def test_any_line_puts_the_next_one_by_time_off(capsys, now):
    with Progress("warmup", 100, "step") as bar:
        for _ in range(8):
            now[0] += 15
            bar.advance()
            bar.line("loss")
    assert lines(capsys) == ["warmup: loss"] * 8


def test_of_work_within_work_the_innermost_is_told_behind_what_it_is_a_part_of(capsys, now):
    with Progress("evaluate"), Progress("evaluate", 12, "measure") as bar:
        bar.advance(3)
        for _ in watched(range(10), "joint", 10, "example"):
            now[0] += 5
        now[0] += 20
        bar.advance()
    assert lines(capsys) == [
        "evaluate: 3 of 12 > joint: 4 of 10 | 5.0 s a example, 30 s left",
        "evaluate: 4 of 12 | 17.5 s a measure, 140 s left",
    ]


def test_short_pieces_of_long_work_do_not_hide_it(capsys, now):
    with Progress("evaluate", 100, "measure") as bar:
        for _ in range(30):
            for _ in watched(range(3), "joint", 3, "example"):
                now[0] += 1
            bar.advance()
    assert len(lines(capsys)) in range(2, 6)  # of 90 seconds


def test_calls_of_a_function_count(capsys, now):
    def double(x):
        now[0] += 10
        return 2 * x

    with Progress("passes", 4, "pass") as bar:
        counted = bar.counting(double)
        assert [counted(n) for n in range(4)] == [0, 2, 4, 6]
    assert lines(capsys) == ["passes: 2 of 4 | 10.0 s a pass, 20 s left"]


def test_what_cannot_count_is_measured(capsys, now):
    there = [100]
    with Progress("download", 1000, "MB", measured=lambda: there[0]):
        now[0] += 25
        there[0] = 350
        tick()
    assert lines(capsys) == ["download: 350 of 1000 | 10.0 MB/s, 65 s left"]


def test_lines_by_time_go_where_the_work_around_says(capsys, now):
    with Progress("generate", 2, "prompt", stream=io.StringIO()) as bar, Progress("load"):
        now[0] += 30
        tick()
        bar.line("done")
    assert bar._stream.getvalue() == "generate: 0 of 2 > load: 30 s so far\n"
    assert capsys.readouterr() == ("generate: done\n", "")


def test_only_the_first_process_prints(capsys, now, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Progress("warmup", 2, "step") as bar:
        now[0] += 30
        bar.advance()
    assert lines(capsys) == []


def test_on_a_terminal_the_bar_tells_and_no_line_does(now, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    by_time = io.StringIO()
    with Progress("warmup", 2, "step", stream=by_time) as bar:
        now[0] += 30
        bar.advance()
        assert not bar.bar.disable
        with Progress("load weights"):  # which no bar shows
            now[0] += 30
            tick()
    assert by_time.getvalue() == "warmup: 1 of 2 > load weights: 30 s so far\n"


def test_a_unit_that_takes_long_shows_life_by_itself(capsys, monkeypatch):
    printed = threading.Event()
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "PULSE", 0.001)
    monkeypatch.setattr(Progress, "_print", lambda self, text, stream: (print(text), printed.set()))
    with Progress("warmup", 2, "step"):
        assert printed.wait(PATIENCE)
    assert lines(capsys)[0].startswith("warmup: 0 of 2 | ")
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed file")])
def test_lines_that_nobody_can_read_end_no_work(error, monkeypatch):
    tried = threading.Event()

    def fail(*_):
        tried.set()
        raise error

    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "PULSE", 0.001)
    monkeypatch.setattr(Progress, "_print", fail)
    with Progress("warmup", 2, "step"):
        assert tried.wait(PATIENCE)


def test_work_that_its_own_thread_ends_ends(monkeypatch):
    """As when that thread's garbage collection closes an abandoned iterator."""
    abandoned, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(progress, "PULSE", 0.001)
    work = watched([1, 2], "validation", 2, "batch")
    monkeypatch.setattr(progress, "tick", lambda: abandoned.wait(PATIENCE) and (work.close(), ended.set()))
    next(work)
    abandoned.set()  # a generator that still runs can be closed by nobody
    assert ended.wait(PATIENCE) and not Progress._open


def test_an_error_within_closes_what_was_open(now):
    with pytest.raises(RuntimeError), Progress("a", 2, "step"), Progress("b"):
        next(watched([1, 2], "c", 2, "row"))
        raise RuntimeError
    assert not Progress._open
