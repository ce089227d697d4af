"""Every command and every params.yaml of the documents does what they say."""

import re
import subprocess

import pytest

from pipeline.command_line import SECTIONS
from pipeline.settings import config, params, rehearsal
from tests.conftest import ROOT
from tests.support.dvc import PATIENCE, committed_clone, dvc, environment, nothing_left, processes, wait_until, worked_off
from tests.support.once import shared_folder

PAGES = {  # with params.yaml files, or parts of one, for this preset
    "README.md": "sudoku4",
    "docs/configuration.md": "sudoku4",
    "docs/phases.md": "sudoku4",
    "docs/deep_supervision.md": "sudoku4",
    "docs/recipes.md": "sudoku4",
    "docs/controls.md": "gsm8k_smol",
}


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


NOT_RUN = {  # of README; that each is understood is tested in test_docs_commands.py
    "make repro": "sets up an environment and runs the default preset: continuous integration does",
    "make test": "is this",
    "dvc exp run -S preset=gsm8k": "needs a corpus from elsewhere",
    "dvc exp run -S '++warmup.bindings.loop.fit.steps=1000'": "docs/configuration.md has it with 8 steps",
    "python -m stages warmup loop.fit.steps=20 --device cuda": "needs a GPU",
}


PRINT = {"--help", "--print-config", "--check"}  # with them a stage only prints: test_docs_commands.py does all of it


def commands() -> list[str]:
    """What the pages on settings and data, and after them README, let a user type; each once, but for what only prints."""
    shown = [block for page in ("docs/configuration.md", "docs/data.md") for block in blocks(page, "sh")]
    readme = re.split(r"^```\w*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)[1::2]
    shown += [block for block in readme if re.match(r"\n(make|dvc) ", block)]
    lines = [line.partition("  #")[0].strip() for block in shown for line in block.splitlines()]
    assert set(NOT_RUN) <= set(lines)
    return [line for line in dict.fromkeys(lines) if line and line not in NOT_RUN and not PRINT & set(line.split())]


@pytest.mark.parametrize("page", PAGES)
def test_a_shown_params_file_resolves(page, tmp_path):
    shown = blocks(page, "yaml")
    assert shown
    for text in shown:
        (tmp_path / "params.yaml").write_text(text if "preset:" in text else f"preset: {PAGES[page]}\n{text}")
        rehearsal.rehearse(config.resolve_all(SECTIONS, params.read(tmp_path / "params.yaml", SECTIONS), root=ROOT))


def test_bindings_of_the_table_mean_what_it_says(tmp_path):
    rows = re.findall(r"^\| `(\w.*)` \| `(\w.+?)`", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert len(rows) >= 2
    for written, _ in rows[:2]:
        (tmp_path / "params.yaml").write_text(f"preset: smoke\ncommon:\n  bindings:\n    {written}\n")
        config.resolve_all(SECTIONS, params.read(tmp_path / "params.yaml", SECTIONS), root=ROOT)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "slotloop"
    committed_clone(shared_folder(tmp_path_factory), folder)
    with nothing_left(folder):
        yield folder
        dvc(folder, "queue", "stop", "--kill")
        wait_until(lambda: not processes(folder), "workers end")


@pytest.mark.slow
def test_every_command_runs(clone):
    typed = commands()
    assert len(typed) >= 28
    for command in typed:
        log = clone.with_name("log")  # a file: workers that a command leaves behind would hold a pipe open
        with log.open("wb") as out:
            done = subprocess.run(
                ["bash", "-c", command], cwd=clone, env=environment(clone), stdout=out, stderr=out, timeout=PATIENCE
            )
        assert done.returncode == 0, f"{command}\n{log.read_text()}"
        if command == "dvc queue start":
            worked_off(clone)
