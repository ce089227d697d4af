"""Text on a terminal that is drawn again in its place: plain ANSI, nothing where output goes to a file."""

import shutil
from typing import TextIO

UP_AND_CLEAR = "\x1b[{}F\x1b[J"


class Screen:
    """A text that changes in place; ``draw`` nothing, and what was drawn is gone.

    >>> import sys
    >>> Screen(sys.stdout).draw("no terminal, no drawing")
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.live, self._lines = stream, stream.isatty(), 0

    def draw(self, text: str = "") -> None:
        """Show ``text`` in place of what was shown; of more than the terminal holds, the end."""
        if not self.live:
            return
        width, height = shutil.get_terminal_size()
        lines = [part for line in text.split("\n") for part in _folded(line, width)] if text else []
        lines = lines[1 - height :] if len(lines) >= height else lines
        over = UP_AND_CLEAR.format(self._lines) if self._lines else ""
        self.stream.write(over + "".join(f"{line}\n" for line in lines))
        self.stream.flush()
        self._lines = len(lines)


def _folded(line: str, width: int) -> list[str]:
    """A line in pieces that fit; what a terminal might obey is blank.

    >>> _folded("abcde", 2), _folded("", 2), _folded("a\\x1b[", 9)
    (['ab', 'cd', 'e'], [''], ['a ['])
    """
    shown = "".join(letter if letter.isprintable() else " " for letter in line)
    return [shown[i : i + width] for i in range(0, len(shown), width)] or [""]
