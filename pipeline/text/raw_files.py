"""Where raw corpora lie: a folder that the environment names, for files that are too large or not ours to be in a repository."""

import os
from pathlib import Path

RAW_VARIABLE = "SLOTLOOP_RAW"
RAW_DEFAULT = "data/raw"


def raw_folder() -> Path:
    """Where raw corpora lie: the environment variable SLOTLOOP_RAW if set, else ``data/raw``."""
    return Path(os.environ.get(RAW_VARIABLE, RAW_DEFAULT))


def raw_name(path: Path) -> str:
    """Name a file as settings do: relative to the raw folder if it lies there, else by its absolute path."""
    whole, folder = path.absolute(), raw_folder().absolute()
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)
