"""Rows of a file of examples: JSON lines, a JSON list, CSV with a header, or Parquet. The only door to ``pyarrow``.

Text is UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one; anything else is an error that names the line.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError

MARKS = (  # longest first: that of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
NO_TEXT = re.compile("[\0\udc80-\udcff]")  # zeros, and bytes that are no UTF-8
MEND = "Save it as UTF-8 (iconv -f ENCODING -t UTF-8)"
Row = tuple[str, dict[str, Any]]  # where it stands (file:line), and its fields


def rows(path: Path) -> Iterator[Row]:
    """Every row in order; nothing is skipped but empty lines.

    Raises:
        DataError: a line is no JSON object, or the file is no Parquet file (file and line are named).
        ConfigError: the library that reads Parquet is not installed.
    """
    return {".parquet": _parquet, ".csv": csv_rows, ".json": _json}.get(path.suffix, _json_lines)(path)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for origin, line in text_lines(file, str(path)):
            yield origin, json_object(line, origin)


def _json(path: Path) -> Iterator[Row]:
    """Objects of one list, or JSON lines under that name."""
    with path.open("rb") as file:
        is_list = file.read(64).lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[")
    if not is_list:
        yield from _json_lines(path)
        return
    for number, value in enumerate(_parsed(path.read_bytes(), str(path)), 1):
        yield f"{path}: item {number}", _object(value, f"{path}: item {number}")


def csv_rows(path: Path, columns: Callable[[list[str]], Sequence[str] | None] = lambda first: None) -> Iterator[Row]:
    """Rows of values between commas under a header of names; a row stands where its last line does.

    Args:
        path: of the file.
        columns: gives the names of the columns if the first row is no header but values; None = it is one.

    Raises:
        DataError: a row is no CSV, or has not as many values as there are names.
    """
    origin = f"{path}:1"

    def lines(file: io.BufferedReader) -> Iterator[str]:
        nonlocal origin
        for place, line in text_lines(file, str(path)):
            origin = place
            yield line

    with path.open("rb") as file:
        names: Sequence[str] | None = None
        try:
            for values in csv.reader(lines(file), strict=True):
                header = names is None and (names := columns(values)) is None
                names = names or values
                if header and (twice := sorted({name for name in names if name and names.count(name) > 1})):
                    raise DataError(f"{origin}: the column {twice[0]!r} stands twice; rename one of them")
                if len(values) != len(names):
                    first = f"the first row, {', '.join(names)[:100]}"
                    raise DataError(f"{origin}: expected {len(names)} values, as {first}, has; got {len(values)}; mend the line")
                if not header:
                    yield origin, dict(zip(names, values, strict=True))
        except csv.Error as error:
            raise DataError(f"{origin}: not valid CSV: {error}") from None


def text_lines(file: io.BufferedReader, name: str) -> Iterator[tuple[str, str]]:
    """Decode a file line by line; lines of white space alone are left out.

    Args:
        file: opened for bytes.
        name: of the file, for the origin of each line (``name:number``).

    Raises:
        DataError: a line is not text in the encoding that the file's mark says, UTF-8 if it has none.
    """
    start = file.peek(4)
    encoding = next((encoding for mark, encoding in MARKS if start.startswith(mark)), "utf-8")
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"  # a byte that is no UTF-8 shows as half a surrogate
    number, text = 0, io.TextIOWrapper(file, encoding=encoding, errors=errors)
    try:
        for number, line in enumerate(text, 1):
            origin = f"{name}:{number}"
            if wrong := NO_TEXT.search(line):
                what = (
                    "a byte of zero; is it UTF-16?" if wrong[0] == "\0" else f"byte 0x{ord(wrong[0]) - 0xDC00:02x}; is it Latin-1?"
                )
                raise DataError(f"{origin}: not text in UTF-8: {what} {MEND}")
            if line.strip():
                yield origin, line
    except UnicodeError as error:
        raise DataError(f"{name}:{number + 1}: not text in {encoding}, as its mark says: {error}. {MEND}") from None
    finally:
        if not file.closed:
            text.detach()  # closing is for who opened it


def json_object(line: str, origin: str) -> dict[str, Any]:
    """Parse a line that holds an object.

    Raises:
        DataError: it does not; names ``origin``.
    """
    return _object(_parsed(line, origin), origin)


def _parsed(text: str | bytes, origin: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{origin}: not valid JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{origin}: not valid JSON: nested too deeply; a line holds texts by name") from None


def _object(value: Any, origin: str) -> dict[str, Any]:
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
    except (ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet after row {number}: {str(error).splitlines()[0]}") from None
