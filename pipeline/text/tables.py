"""Rows of a file of examples: JSON lines, or Parquet as datasets on the hub come. The only door to ``pyarrow``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError

Row = tuple[str, dict[str, Any]]  # where it stands (file:line), and its fields


def rows(path: Path) -> Iterator[Row]:
    """Every row in order; nothing is skipped but empty lines.

    Raises:
        DataError: a line is no JSON object, or the file is no Parquet file (file and line are named).
        ConfigError: the library that reads Parquet is not installed.
    """
    return _parquet(path) if path.suffix == ".parquet" else _json_lines(path)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _parsed(line: str, origin: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{origin}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{origin}: expected an object, got {type(value).__name__}")
    return value


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise ConfigError(f"{path} needs pyarrow: pip install 'slotloop[parquet]'") from None
    number = 0
    try:
        for part in parquet.ParquetFile(path).iter_batches():
            for row in part.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet after row {number}: {str(error).splitlines()[0]}") from None
