"""What tests of whole stages share."""

import pytest


@pytest.fixture
def inside(finished, monkeypatch):
    """Work inside the workspace that the file's own ``finished`` has made."""
    monkeypatch.chdir(finished)
    return finished
