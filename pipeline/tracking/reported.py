"""What a record keeps of a run's output to be reported: copies, and of an evaluation the trace from which its pictures are drawn.

The trace itself is not sent. It waits beside the copies until who sends the record has drawn it: the run does not pay for that.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

REPORTED = ("curves.csv", "validation.csv", "metrics.json", "*.md", "*.png")
PICTURES = (".png", ".gif")
TRACED = ("metrics.json", "trace.json")  # of an evaluation, which these are enough to draw
Draw = Callable[[Path, Path], None]  # writes pictures of an evaluation's folder into another one


def copy(out: Path, record: Path) -> None:
    """Copy what is reported from a run's output folder into its record."""
    for file in (file for pattern in REPORTED for file in sorted(out.rglob(pattern))):
        _copied(file, record / "files" / file.relative_to(out))
    if all((out / name).is_file() for name in TRACED):
        for name in TRACED:
            _copied(out / name, record / "traced" / name)


def draw(record: Path, write: Draw) -> None:
    """Draw what a record holds of an evaluation, once; what goes wrong is a line, for a picture stops no record.

    Args:
        record: its folder.
        write: writes the pictures.
    """
    traced = record / "traced"
    if not traced.is_dir():
        return
    try:
        write(traced, record / "files")
    except Exception as error:
        print(f"{record.name}: no picture of the refinement: {type(error).__name__}: {error}", flush=True)
    shutil.rmtree(traced, ignore_errors=True)


def pictures(files: Path) -> list[Path]:
    """List a record's pictures, still and moving ones."""
    return sorted(file for file in files.rglob("*") if file.suffix in PICTURES)


def _copied(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
