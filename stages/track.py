"""track: sends the records of stage runs to trackers. Not a stage of the pipeline: no result depends on it."""

from collections.abc import Sequence
from pathlib import Path

from pipeline import shipping


def run(*, trackers: Sequence[shipping.Tracker], patience: float, ship: bool = False, follow: str = "") -> None:
    """List the records and where they were sent; with ``--ship``, send what is missing.

    Args:
        trackers: where runs are reported.
        patience: seconds after a run's end until what could not be sent is left for ``--ship``.
        ship: send what is missing.
        follow: the record of a run that has just begun, to be sent while it goes on (given by the launcher).
    """
    if follow:
        shipping.follow(Path(follow), trackers, patience)
    else:
        print("\n".join(shipping.ship(trackers) if ship else shipping.overview(trackers)) or "no records")
