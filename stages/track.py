"""track: sends the records of stage runs to trackers. Not a stage of the pipeline: no result depends on it."""

from collections.abc import Sequence
from pathlib import Path

from components.ranges import NonNegativeFloat, PositiveFloat
from pipeline.tracking import delivery, uploader


def run(
    *, trackers: Sequence[delivery.Tracker], every: PositiveFloat, patience: NonNegativeFloat, ship: bool = False, follow: str = ""
) -> None:
    """List the records and where they were sent; with ``--ship``, send what is missing.

    Args:
        trackers: where runs are reported.
        every: seconds between deliveries while a run goes on.
        patience: seconds after a run's end until what could not be sent is left for ``--ship``.
        ship: send what is missing.
        follow: the record of a run that has just begun, to be sent while it goes on (given by the launcher).
    """

    def draw(evaluation: Path, files: Path) -> None:
        from pipeline.reporting import recorded_pictures  # brings torch and matplotlib, which most records do without

        recorded_pictures.draw(evaluation, files)

    if follow:
        uploader.follow(Path(follow), trackers, every, patience, draw)
    elif ship:
        uploader.ship(trackers, draw)
    else:
        uploader.overview(trackers)
