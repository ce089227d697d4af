"""Tables of numbers with intervals, as markdown."""

import re
from collections.abc import Mapping, Sequence

from pipeline.reporting.intervals import is_clear

_MEANING = re.compile(r"[!-/:-@\[-`{-~]")  # every sign that could mean something in markdown
UNITS = ("", " k", " M", " G", " T", " P", " E", " Z")


def cell(value: Mapping[str, float]) -> str:
    """Show a mean with its interval, where it has one, in three decimals.

    >>> cell({"mean": 0.96, "low": 0.943, "high": 0.975, "n": 600}), cell({"mean": 0.96, "n": 1})
    ('.960 [.943, .975]', '.960')
    """
    mean, *ends = (
        f"{value[k]:.3f}".replace("0.", ".", 1) if abs(value[k]) < 1 else f"{value[k]:.3f}"
        for k in ("mean", "low", "high")
        if k in value
    )
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def with_unit(value: float) -> str:
    """Show a large number in three digits.

    >>> [with_unit(value) for value in (0, 999, 8.02e9, 5.4e16)]
    ['0', '999', '8.02 G', '54 P']
    """
    thousands = 0
    while value >= 999.5:
        value, thousands = value / 1000, thousands + 1
    return f"{value:.3g}{UNITS[thousands]}"


def escaped(text: str) -> str:
    """Write text for a cell so that nothing of it is markdown.

    >>> print(escaped("a|b *c*"))
    a\\|b \\*c\\*
    """
    return _MEANING.sub(lambda sign: f"\\{sign[0]}", " ".join(text.split()))


def bold_if_clear(value: Mapping[str, float]) -> str:
    """Show a mean with its interval, bold where that is clear of zero."""
    return f"**{cell(value)}**" if is_clear(value) else cell(value)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose source lines up too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines) + "\n"
