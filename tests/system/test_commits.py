"""Commits that the documents, presets and baselines name beside a figure are in this repository's history."""

import re
import subprocess

import pytest

from tests.conftest import ROOT
from tests.support.dvc import git

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
SETTINGS = sorted((ROOT / "gin").rglob("*.gin"))
BASELINES = sorted((ROOT / "bench/baselines").glob("*.json"))


@pytest.fixture(scope="module")
def history():
    """Every commit that HEAD comes from; a copy without its history knows none."""
    inside = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not (ROOT / ".git").exists() or inside.stdout.strip() != "false":
        pytest.skip("the history is not here")
    return git(ROOT, "rev-list", "HEAD").split()


def cited(path):
    """Commits that a file names: seven digits in prose and in a preset's comments, all forty in a baseline."""
    text = path.read_text()
    if path.suffix == ".json":
        return set(re.findall(r'"commit": "(.*?)"', text))
    if path.suffix == ".gin":
        text = "\n".join(line.partition("#")[2] for line in text.splitlines())
    return set(re.findall(r"(?<![\w.#/-])[0-9a-f]{7}(?![\w-])", text))


def unknown(commits, history):
    return sorted(commit for commit in commits if not any(known.startswith(commit) for known in history))


def test_every_commit_that_is_named_is_there(history):
    names = {path.relative_to(ROOT).as_posix(): cited(path) for path in (*PAGES, *SETTINGS, *BASELINES)}
    assert len(set().union(*names.values())) >= 25 and any(path.startswith("gin/") for path, found in names.items() if found)
    assert {path: wrong for path, found in names.items() if (wrong := unknown(found, history))} == {}


def test_a_commit_that_is_not_there_is_seen(history, tmp_path):
    head = history[0]
    page, preset, baseline = tmp_path / "page.md", tmp_path / "preset.gin", tmp_path / "machine.json"
    page.write_text(f"Commit {head[:7]}, of the layers\n0000000: 0.0000000, 10000000 [{head[:7]}](a.md#b).\n")
    preset.write_text(f"# (commit 0000000, seed 2 {head[:7]})\nloop.fit.steps = 1111111  # as {head[:7]}\n")
    baseline.write_text(f'{{"commit": "{head[:39]}g", "ratio": 0.1234567}}')
    assert [unknown(cited(path), history) for path in (page, preset)] == [["0000000"], ["0000000"]]
    assert unknown(cited(baseline), history) == [f"{head[:39]}g"]
    assert cited(page) == cited(preset) == {head[:7], "0000000"}
