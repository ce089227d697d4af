"""Rows of files: both formats say the same, and what is not one of them is named."""

import codecs
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


LINES = [{"question": f"caf\u00e9 {i} \u2192 \U0001f600", "answer": "\u4e94"} for i in range(3)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in LINES)


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        TEXT.rstrip().encode("utf-8-sig"),
    ],
)
def test_text_as_other_tools_write_it_is_read(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert list(rows(path)) == [(f"{path}:{number}", row) for number, row in enumerate(LINES, 1)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"question": "caf\xe9"}', "not text in UTF-8: byte 0xe9; is it Latin-1? Save it as UTF-8"),
        (b'{"question": "caf\x92"}', "not text in UTF-8: byte 0x92; is it Latin-1? Save it as UTF-8"),
        (b'{"question": "\xed\xa0\xbd"}', "not text in UTF-8: byte 0xed"),
        ('{"question": "a"}'.encode("utf-16-le"), "not text in UTF-8: a byte of zero; is it UTF-16? Save it as UTF-8"),
        (b'{"question": "a\0"}', "a byte of zero"),
        (codecs.BOM_UTF8 + b'{"question": "a"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"--5", "not valid JSON"),
    ],
)
def test_a_line_that_is_no_text_is_named_with_the_mend(tmp_path, line, told):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question": "a"}\n\n' + line + b"\n")
    with pytest.raises(DataError) as error:
        list(rows(path))
    assert str(error.value).startswith(f"{path}:3: ") and told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [TEXT.encode("utf-16")[:-1], codecs.BOM_UTF16_LE + b"\x00\xd8\x41\x00", codecs.BOM_UTF32_LE + b"abc"]
)
def test_text_that_is_not_what_its_mark_says_is_named(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"a.jsonl:\d: not text in utf-(16|32), as its mark says"):
        list(rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_objects_is_a_row_each(tmp_path, indent, encoding):
    file = tmp_path / "a.json"
    file.write_text("\n" + json.dumps(LINES, indent=indent, ensure_ascii=False), encoding=encoding)
    if encoding == "utf-16":  # whose first bytes are no bracket: it is read line by line
        with pytest.raises(DataError, match=r"a\.json:\d+: "):
            list(rows(file))
        return
    assert list(rows(file)) == [(f"{file}: item {number}", row) for number, row in enumerate(LINES, 1)]


def test_lines_may_have_the_name_of_a_list(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in LINES))
    assert list(rows(file)) == [(f"{file}:{number}", row) for number, row in enumerate(LINES, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, 3]', r"a\.json: item 2: expected an object, got int"),
        ('[{"a": 1},', r"a\.json: not valid JSON: "),
        ('[{"a": 1}]\n[{"a": 2}]', r"a\.json: not valid JSON: Extra data"),
        ("[" * 100_000, r"a\.json: not valid JSON: nested too deeply"),
        ("[\udcff]", r"a\.json: not valid JSON: "),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        list(rows(tmp_path / "a.json"))
