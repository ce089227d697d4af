"""curves.csv: one row an optimizer step. Values stay on the device until ``flush``, so logging never waits for the GPU."""

import csv
from pathlib import Path

import torch
from torch import Tensor

from pipeline.files import storing

Value = Tensor | float


class Curves:
    """Rows of named numbers; a file that is there is continued. Columns are those of its first row.

    Args:
        path: of the file.
        writes: False in all processes of a job but the first: rows are read and not written.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._rows: list[tuple[int, dict[str, Value]]] = []
        self._columns: list[str] = []
        if writes:
            with storing(path):
                path.parent.mkdir(parents=True, exist_ok=True)

    def record(self, step: int, values: dict[str, Value]) -> None:
        """Keep one row; tensors must be 0-d."""
        self._rows.append((step, values))

    def flush(self) -> list[dict[str, float]]:
        """Append what was recorded to the file and return it, one host sync for all of it."""
        if not self._rows:
            return []
        rows, self._rows = self._rows, []
        with torch.no_grad():
            tensors = [value for _, values in rows for value in values.values() if isinstance(value, Tensor)]
            numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        read = [
            {"step": step, **{k: next(numbers) if isinstance(v, Tensor) else v for k, v in values.items()}} for step, values in rows
        ]
        if not self.writes:
            return read
        with storing(self.path), self.path.open("a", newline="") as file:
            if not self._columns:
                self._columns = list(read[0])
                if file.tell() == 0:
                    csv.writer(file, lineterminator="\n").writerow(self._columns)
            line = ",".join(["%.9g"] * len(self._columns)) + "\n"
            file.writelines(line % tuple(row[column] for column in self._columns) for row in read)
        return read


def read(path: Path) -> dict[str, list[float]]:
    """Columns of a curves file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
