"""report: one readable page with tables and pictures from what the other stages left."""

from collections.abc import Mapping
from pathlib import Path

from pipeline import reporting


def run(*, out: str, evaluation: str, phases: Mapping[str, str]) -> None:
    """Write ``out`` with report.md, table.md and the pictures, and print the table.

    Args:
        out: folder of the report.
        evaluation: folder that evaluate wrote.
        phases: folder of each training phase, for its curves.
    """
    print(reporting.report(Path(out), Path(evaluation), phases))
