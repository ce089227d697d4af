"""A prepared folder of which only the first examples are looked at: for a quick look, not for a result."""

from pathlib import Path

from pipeline.corpora.prepared import Prepared, Split
from pipeline.errors import ConfigError


class Limited(Prepared):
    """The first ``limit`` examples of every split; None = all.

    Raises:
        ConfigError: the limit is not positive.
    """

    def __init__(self, folder: str | Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"evaluate.run.limit is {limit}; expected how many examples of each split are looked at, or none")
        super().__init__(folder)
        self.limit = limit
        self.provenance = {} if limit is None else {"limit": limit}  # what the metrics say of it

    def split(self, name: str) -> Split:
        """Return the first examples of one split, see ``Prepared.split``."""
        return super().split(name).take(slice(0, self.limit))
