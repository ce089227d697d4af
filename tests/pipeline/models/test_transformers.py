"""A library that would compute something else without a word, or is not there, is refused."""

import sys

import pytest

from pipeline.errors import ConfigError
from pipeline.models.transformers import transformers


def test_an_old_library_is_refused(monkeypatch):
    class Old:
        __version__ = "5.1.0"

    monkeypatch.setitem(sys.modules, "transformers", Old)
    with pytest.raises(ConfigError, match=r"transformers 5\.1\.0 would run a bidirectional model causally"):
        transformers()


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'slotloop\[hf\]'"):
        transformers()
