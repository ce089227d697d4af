"""Progress outside a terminal: plain lines, no bar."""

from pipeline.progress import Progress


def test_lines_name_their_work_and_no_bar_is_drawn(capsys):
    with Progress("extract", 3, "rows") as bar:
        bar.advance(2)
        bar.line("half way")
        bar.advance()
    assert capsys.readouterr() == ("extract: half way\n", "")
