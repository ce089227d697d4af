"""Every command that a document shows is understood: stages, flags, bindings, presets, targets and benches exist.

Nothing trains here; tests/system/test_docs.py (slow) runs what can be run in a clone.
"""

import importlib.util
import re
import shlex
import shutil

import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from ruamel.yaml import YAML

from pipeline.command_line import SECTIONS, TOOLS, parse
from pipeline.planning.own_text import OwnText
from pipeline.settings import config, params
from pipeline.text.jsonl import QuestionAnswers
from stages.__main__ import main
from tests.conftest import ROOT

EXTENDING = ROOT / "docs/extending.md"  # run as written, with the files that it adds, by test_extending.py
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *(ROOT / "docs").rglob("*.md")} - {EXTENDING})
STARTS = ("python ", "dvc ", "make ", "SLOTLOOP_PROCESSES=2 ", "SLOTLOOP_TRUNKS=", "printf ")


def commands():
    """Every command line, in blocks and in running text, without what stands before a stage's name or behind a comment."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        lines = [line for language, block in blocks if language in ("", "sh") for line in block.replace("\\\n", "").splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in lines:
            line = re.split(r"\s+# ", line)[0].strip()
            if line.startswith(STARTS):
                found.add(re.sub(r"^(\w+=\S+ )+", "", line.split(" | ")[-1]).replace("<stage>", "warmup"))
    return sorted(found)


COMMANDS = commands()
SMOKE = ("smoke", "gsm8k_smoke", "gsm8k_smol_smoke", "gsm8k_smol_diffusion_smoke")
PLANS = [line for line in COMMANDS if line.startswith("python -m stages configure --plan")]  # the flags of all: test_launcher
MADE = [line for line in PLANS if "--processes" in line] + PLANS[-1:]  # more than a check: settings have to fit the processes
STAGES = [line for line in COMMANDS if line.startswith("python -m stages ") and (line in MADE or line not in PLANS)]
EXPERIMENTS = [line for line in COMMANDS if re.match(r"dvc exp run .*(-S|--set-param)", line)]
OTHERS = sorted({*COMMANDS} - {*STAGES, *EXPERIMENTS, *PLANS})


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """The repository's own settings, with a preset as `new` writes it, over the results of the smoke run."""
    shutil.copytree(ROOT / "gin", tmp_path / "gin")
    corpus = QuestionAnswers("mine/train.jsonl", 0.1, "none")
    own = OwnText(corpus, [(3, 4)] * 80, [(3, 4)] * 10, [(3, 4)] * 10, ["4"] * 10, None, [])
    (tmp_path / "gin/presets/mine.gin").write_text(own.preset(4, "mine --train mine/train.jsonl").written())
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    for folder in ("data", "outputs"):
        (tmp_path / folder).symlink_to(finished / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def test_the_documents_show_commands():
    assert len(STAGES) >= 20 and len(EXPERIMENTS) >= 10 and len(OTHERS) >= 15


@pytest.mark.parametrize("line", STAGES)
def test_a_stages_command_line_is_understood(here, capsys, line):
    words = shlex.split(line)[3:]
    if words[0] in TOOLS:
        assert parse(words[0], [word for word in words[1:] if word != "--help"]).stage == words[0]
        return
    if "answers." in line:  # a setting of presets that answer in text
        (here / "params.yaml").write_text((here / "params.yaml").read_text().replace("preset: sudoku4", "preset: gsm8k"))
    prints = {"--help", "--print-config"} & {*words}
    before = {path for path in here.rglob("*") if path.is_file()}
    assert main(words if prints else [*words, *{"--check"} - {*words}]) == 0, capsys.readouterr().err
    assert bool(capsys.readouterr().out) >= bool(prints) and {path for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("line", EXPERIMENTS)
def test_settings_of_an_experiment_resolve(here, line):
    """``-S`` as DVC applies it; a grid's every point."""
    words = shlex.split(line)[3:]
    settings = [word.removeprefix("-S") or words[place + 1] for place, word in enumerate(words) if word.startswith("-S")]
    assert settings
    for point in get_hydra_sweeps({"params.yaml": settings}):
        shutil.copy(ROOT / "params.yaml", here / "params.yaml")
        apply_overrides(here / "params.yaml", point["params.yaml"])
        texts = config.resolve_all(SECTIONS, params.read(here / "params.yaml", SECTIONS), root=here)
        if "mine" not in line:
            continue
        assert "mine/train.jsonl" in texts["prepare"]


def test_other_commands_name_what_exists():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    pipeline = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    for line in OTHERS:
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[:2] == ["dvc", "repro"]:
            assert {word for word in words[2:] if not word.startswith("-")} <= set(pipeline), line
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), line
            text = (ROOT / f"{words[2].replace('.', '/')}.py").read_text()
            flags = [word.removeprefix("--") for word in words[3:] if word.startswith("--") and words[2].startswith("bench.")]
            assert all(re.search(rf"\b{flag}\b", text) for flag in flags), line
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), line


def test_presets_of_the_readme_exist():
    rows = re.findall(r"^\| (`[a-z]\w+`(?:, `\w+`)*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    existing = {path.stem for path in (ROOT / "gin/presets").glob("*.gin")}
    assert len(named) >= 12 and named - {"sudoku4"} <= existing and existing - named <= {"defaults", *SMOKE}
