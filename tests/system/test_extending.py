"""docs/extending.md as it is written: its files, its lines and its commands, in a clone, through DVC."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.dvc import clone_to, dvc, environment, git, ran

PAGE = (ROOT / "docs/extending.md").read_text()
GUIDES = dict(re.findall(r"^## An? (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def blocks(guide: str) -> Iterator[tuple[str, str]]:
    """Language and content of each block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", GUIDES[guide], re.MULTILINE | re.DOTALL)


def apply(folder: Path, content: str) -> None:
    """Change lines of a file: what is taken out must be there once, what follows it comes in."""
    path, *lines = content.splitlines()
    file = folder / path.removeprefix("--- ")
    for pair in re.findall(r"^-(.*)\n((?:\+.*\n?)+)", "\n".join(lines), re.MULTILINE):
        old, new = pair[0], "\n".join(line[1:] for line in pair[1].splitlines())
        assert file.read_text().count(old) == 1, f"{file.name} has not exactly one '{old}'"
        file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_fits_on_a_page(guide):
    assert len(GUIDES) == 3
    assert max(len(content.splitlines()) for _, content in blocks(guide)) <= 60


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = clone_to(tmp_path_factory.mktemp("extending") / "slotloop", "smoke")
    (folder / "dvc.lock").unlink(missing_ok=True)
    for guide in GUIDES:
        for language, content in blocks(guide):
            if language == "diff":
                apply(folder, content)
            elif language != "sh":
                path = folder / content.splitlines()[0].removeprefix("# ")
                assert not path.exists()
                path.write_text(content)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "extended")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("guide", "model"), [("refiner", "GatedRefiner"), ("backbone", "MixerLM"), ("corpus", "SlotRefiner")])
def test_its_commands_train_it(clone, guide, model):
    commands = [line for language, content in blocks(guide) if language == "sh" for line in content.splitlines()]
    assert commands
    git(clone, "checkout", "--", "params.yaml")  # an experiment leaves its settings there
    for command in commands:
        done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment(clone), capture_output=True, text=True)
        assert not done.returncode, f"{command}\n{done.stdout}\n{done.stderr}"
    described = (clone / "outputs/warmup/model.json").read_text() + (clone / "data/backbone/model.json").read_text()
    assert f'"{model}"' in described
    metrics = json.loads((clone / "outputs/evaluate/metrics.json").read_text())
    assert "warmup" in json.dumps(metrics)
    assert ran(dvc(clone, "repro")) == []


@pytest.mark.slow
def test_what_is_added_keeps_the_rules_of_the_house(clone):
    done = subprocess.run(["python", "-m", "ruff", "check", "."], cwd=clone, env=environment(clone), capture_output=True, text=True)
    assert not done.returncode, done.stdout
