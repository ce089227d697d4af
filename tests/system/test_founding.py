"""docs/founding.md: every feature of the founding pages has a place that exists, and a test that exists."""

import ast
import re

import pytest

from tests.conftest import ROOT

ROWS = re.findall(r"^\| (\d+) \| (.*) \| (.*) \| (.*) \|$", (ROOT / "docs/founding.md").read_text(), re.MULTILINE)
FILE = re.compile(r"(?:components|pipeline|stages|gin|docs|bench|tests)/[\w/.]+\.(?:py|gin|md)")


def names_in(path):
    """Names of the tests that a file holds."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_rows_are_numbered_and_none_is_left_out():
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1)) and len(ROWS) >= 80


@pytest.mark.parametrize(("feature", "where", "test"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_row_names_what_exists(feature, where, test):
    assert feature.strip() and where.strip()
    assert all((ROOT / path).is_file() for path in FILE.findall(where)), where
    path, _, name = test.strip("`").partition("::")
    assert path.startswith("tests/") and (ROOT / path).is_file(), test
    assert (name in names_in(ROOT / path)) if name else names_in(ROOT / path), test


def test_settings_of_the_table_exist():
    macros = set(re.findall(r"`([A-Z][A-Z_]+)`", "".join(where for _, _, where, _ in ROWS)))
    bound = set(re.findall(r"^([A-Z][A-Z_]+) =", "".join(p.read_text() for p in (ROOT / "gin").rglob("*.gin")), re.MULTILINE))
    assert len(macros) >= 10 and macros <= bound
