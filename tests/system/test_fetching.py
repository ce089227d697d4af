"""Data that make fetches: what is not byte for byte the expected file does not come to stand in its place."""

import hashlib
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

PLACE = "data/raw/d1_4x4/4x4_test_sudoku.csv"
pytestmark = pytest.mark.skipif(not (shutil.which("make") and shutil.which("curl")), reason="needs make and curl")


@pytest.mark.parametrize(("content", "arrives"), [(b"Puzzle,Solution\n", True), (b"Puzzle,Solution\r\n", False), (b"", False)])
def test_public_puzzles_are_those_of_one_commit_or_none(tmp_path, content, arrives):
    source = tmp_path / "copy"
    source.mkdir()
    (source / "4x4_test_sudoku.csv").write_bytes(content)
    expected = hashlib.sha256(b"Puzzle,Solution\n").hexdigest()
    command = ["make", "-f", str(ROOT / "Makefile"), "data-d1", f"D1=file://{source}", f"D1_SHA256={expected}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == arrives == (tmp_path / PLACE).exists(), done.stderr
    assert not arrives or (tmp_path / PLACE).read_bytes() == content


def test_the_recipe_reads_what_is_fetched():
    assert f"'{PLACE.removeprefix('data/raw/')}'" in (ROOT / "gin/recipes/d1_4x4.gin").read_text()
    assert PLACE in (ROOT / "Makefile").read_text()
