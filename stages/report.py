"""report: one readable page with tables and pictures from what the other stages left."""

from collections.abc import Mapping
from pathlib import Path


def run(*, out: str, evaluation: str, shards: str, phases: Mapping[str, str]) -> None:
    """Write ``out`` with report.md, table.md and the pictures, and print the table.

    Args:
        out: folder of the report.
        evaluation: folder that evaluate wrote.
        shards: folder of the states that phases read.
        phases: folder of each training phase, for its curves.
    """
    from pipeline.reporting import page  # brings matplotlib, half a second that only this stage should pay

    print(page.report(Path(out), Path(evaluation), Path(shards), phases))
