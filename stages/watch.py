"""watch: draws a run that goes on, here or elsewhere, on the terminal: losses by recursion step, rate, time left."""

from pathlib import Path


def run(*folders: str, once: bool = False) -> None:
    """Draw the newest run of a folder every second until it ends or Ctrl-C; reads files only.

    Args:
        folders: a workspace or the folder of a phase; default: here.
        once: print one picture and end.
    """
    from pipeline.diagnosis import watching
    from pipeline.errors import ConfigError

    if len(folders) > 1:
        raise ConfigError(f"watch looks at one folder, got {len(folders)}: {' '.join(folders)}")
    watching.watch(Path(*folders), watching.console(), once=once)
