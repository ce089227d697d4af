"""Rows of files: both formats say the same, and what is not one of them is named."""

import json
import sys

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.text.tables import rows

ROWS = [{"question": f"q {i}", "answer": "a\n" * i, "level": i, "tags": ["x", None]} for i in range(5)]


@pytest.fixture
def both(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), table, row_group_size=2)
    return lines, table


def test_both_formats_hold_the_same_rows_in_order(both):
    for path in both:
        assert list(rows(path)) == [(f"{path}:{number}", row) for number, row in enumerate(ROWS, 1)]


def test_a_damaged_table_is_named(both):
    _, table = both
    data = table.read_bytes()
    for damaged in (b"words", data[:-9], data[:40] + data[200:]):
        table.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet after row 0"):
            list(rows(table))


def test_without_the_library_a_table_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'slotloop\[parquet\]'"):
        list(rows(tmp_path / "a.parquet"))
