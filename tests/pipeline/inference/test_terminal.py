"""Drawing in place: what a terminal then shows, and silence elsewhere."""

import io
import os
import re

import pytest

from pipeline.inference.terminal import Screen


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def shown(self):
        """What stands there after everything that was written: a terminal in a few lines."""
        lines, row = [""], 0
        for up, clear, text in re.findall(r"\x1b\[(\d+)F|(\x1b\[J)|([^\x1b]+)", self.getvalue()):
            if up:
                row -= int(up)
                assert row >= 0
            elif clear:
                lines[row:] = [""]
            else:
                written = text.split("\n")
                lines[row] += written[0]
                lines[row + 1 :] = written[1:]
                row += len(written) - 1
        return lines


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((6, 4)))


def test_a_text_takes_the_place_of_the_one_before(narrow):
    screen = Screen(terminal := Terminal())
    for text in ("ab", "cd\nef", "gh"):
        screen.draw(text)
        assert terminal.shown() == [*text.split("\n"), ""]
    screen.draw()
    assert terminal.shown() == [""]


def test_long_lines_are_folded_and_what_does_not_fit_scrolls_away(narrow):
    screen = Screen(terminal := Terminal())
    screen.draw("123456789")
    assert terminal.shown() == ["123456", "789", ""]
    screen.draw("a\nb\nc\nd\ne")
    assert terminal.shown() == ["c", "d", "e", ""]


def test_what_a_model_says_moves_no_cursor(narrow):
    screen = Screen(terminal := Terminal())
    screen.draw("a\x1b[2Jb")
    assert terminal.shown() == ["a [2Jb", ""]


def test_elsewhere_nothing_is_written():
    Screen(stream := io.StringIO()).draw("ab")
    assert stream.getvalue() == ""
