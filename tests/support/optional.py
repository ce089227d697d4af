"""Packages that not every installation has."""

import importlib.util

import pytest


def needs(*packages: str) -> None:
    """Skip the module if one of them is not installed. None is imported: some bring torch's compiler, and collection would wait."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)
