"""Progress outside a terminal: plain lines, no bar."""

from pipeline.progress import Progress


def test_lines_name_their_work_and_no_bar_is_drawn(capsys):
    with Progress("extract", 3, "rows") as bar:
        bar.advance(2)
        bar.line("half way")
        bar.advance()
    assert capsys.readouterr() == ("extract: half way\n", "")


def test_a_log_shows_life_now_and_then_and_never_more_often(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now[0])
    with Progress("prepare", 90, "puzzle") as bar:
        for second in range(90):
            now[0] = float(second)
            bar.advance()
            bar.beat()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"prepare: {done} of 90" for done in (21, 41, 61, 81)]


def test_work_of_unknown_length_tells_no_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now[0])
    with Progress("prepare", 0, "puzzle") as bar:
        now[0] = 30.0
        bar.advance(60)
        bar.beat()
    assert capsys.readouterr().out == "prepare: 60 | 2.0 puzzles/s, time left unknown\n"
