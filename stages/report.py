"""report: one readable page with tables and pictures from what the other stages left."""

from collections.abc import Mapping
from pathlib import Path

from components.ranges import PositiveInt, in_range


@in_range
def run(
    *,
    out: str,
    evaluation: str,
    shards: str,
    phases: Mapping[str, str],
    settings: str,
    device: str,
    precision: str,
    threads: PositiveInt,
) -> None:
    """Write ``out`` with index.html, report.md, table.md and the pictures, and print the table.

    Args:
        out: folder of the report.
        evaluation: folder that evaluate wrote.
        shards: folder of the states that phases read.
        phases: folder of each training phase, for its curves.
        settings: file of the settings over a preset, which the page lists; where there is none, it lists none.
        device, precision, threads: that the preset's stages computed with, for the page to tell.
    """
    from pipeline.reporting import page  # brings matplotlib, half a second that only this stage should pay
    from pipeline.settings import params

    over_preset = params.read(Path(settings), params.SECTIONS) if Path(settings).is_file() else None
    machine = {"device": device, "precision": precision, "threads": threads}
    read = ("common", *params.STAGES)
    print(page.report(Path(out), Path(evaluation), Path(shards), phases, runtime=machine, params=over_preset, sections=read))
