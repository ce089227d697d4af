"""Ratios that a bench measures: it runs in a process of its own, and every column with ``_vs_`` in its rows is one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.suite import Bench

ROOT = Path(__file__).resolve().parent.parent
BESIDE = "_best"  # of several rounds: beside the median of the same

Ratios = dict[str, float]  # "bench: case: quantity_vs_other" -> ratio


def ratios(bench: Bench, quick: bool) -> Ratios:
    """Run a bench and collect its ratios by what they claim.

    Raises:
        RuntimeError: it failed, or its rows have no ratio; the last line that it printed says why.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        options = (bench.quick if quick else bench.whole).split()
        command = [sys.executable, "-m", f"bench.{bench.name}", *options, "--json", str(path)]
        environment = {**os.environ, "TQDM_DISABLE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing was printed"]
            raise RuntimeError(f"exit status {done.returncode}: {lines[-1]}")
        collected = dict(of_rows(bench, json.loads(path.read_text())))
    if not collected:
        raise RuntimeError("no column of its rows is a ratio (its name has _vs_)")
    return collected


def of_rows(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield claim and value of every ratio, but those of a row over itself.

    >>> rows = [{"way": "plain", "s": 4.0, "s_vs_plain": 1.0}, {"way": "ours", "s": 1.0, "s_vs_plain": 0.25, "s_vs_best": None}]
    >>> list(of_rows(Bench("example", ("way", "s"), ""), rows))
    [('example: ours, s 1.0: s_vs_plain', 0.25)]
    """
    for row in rows:
        cells = {column: row[column] for column in bench.case if column in row}
        case = [value if isinstance(value, str) else f"{column} {value}" for column, value in cells.items()]
        for column, value in row.items():
            _, compared, other = column.partition("_vs_")
            if compared and value is not None and other not in case and not column.endswith(BESIDE):
                yield f"{bench.name}: {', '.join(case)}: {column}", float(value)
