"""A folder of settings to change."""

import shutil

import pytest

from tests.conftest import ROOT


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with a gin/ of its own, and the current one."""
    shutil.copytree(ROOT / "gin", tmp_path / "gin")
    monkeypatch.chdir(tmp_path)
    return tmp_path
