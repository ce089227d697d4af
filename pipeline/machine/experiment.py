"""DVC's experiments in folders of their own (``dvc exp run --temp``, ``--queue``): the repository without what git ignores and DVC
does not track. What a stage needs of that is read in the checkout that the experiment was begun in.
"""

import os
from pathlib import Path


def checkout() -> Path | None:
    """Find the checkout in which this experiment was begun; None outside of an experiment's folder."""
    root = Path(os.environ.get("DVC_ROOT", "")).resolve()  # in an experiment DVC names the repository that it lies in
    return root if root / ".dvc" in Path.cwd().parents else None


def beside(path: Path) -> Path:
    """Name the same path in the checkout if only that has it, else the path as it is."""
    begun_in = checkout()
    if begun_in is None or path.exists() or not (begun_in / path).exists():
        return path
    return begun_in / path


def link_missing(path: Path) -> Path:
    """Link a file that only the checkout has to its place in the experiment's folder, and say so; returns the path as it is."""
    elsewhere = beside(path)
    if elsewhere != path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(elsewhere)
        print(f"{path} is not in this experiment's folder; it is read in {checkout()}", flush=True)
    return path
