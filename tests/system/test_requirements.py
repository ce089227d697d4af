"""The lock file: every package in it can be installed with the oldest Python that the project promises."""

import importlib.metadata
import re
import tomllib

from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT


def test_every_locked_package_takes_the_oldest_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [oldest] = re.findall(r"^>=([\d.]+)$", project["requires-python"])
    names = [line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    asked = {name: importlib.metadata.metadata(name)["Requires-Python"] or "" for name in names}
    assert len(asked) > 100
    assert {name: versions for name, versions in asked.items() if f"{oldest}.0" not in SpecifierSet(versions)} == {}
