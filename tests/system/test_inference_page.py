"""docs/inference.md: what it tells to type and to write runs, over the smoke preset's models, and says what it says."""

import re
import shlex
from itertools import permutations, product

import pytest

from components.inference.sampling import Sampler
from pipeline.inference.generation import Generator
from stages.__main__ import main
from tests.conftest import ROOT

PAGE, README = ((ROOT / name).read_text() for name in ("docs/inference.md", "README.md"))
PUZZLE = "12../..../4.../...1"


def blocks(language, page=PAGE):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(copy_of, monkeypatch):
    monkeypatch.chdir(copy_of)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (copy_of / "puzzles.txt").write_text(f"{PUZZLE}\n12../..../2.../...3\n")
    return copy_of


def test_its_python_runs_in_order(here, capsys):
    code = blocks("python")
    assert len(code) == 3 and len(code[0].strip().splitlines()) == 5
    exec("\n".join(code), found := {})
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + 13 + 1 and out[1] == f"{PUZZLE} 0" and out[13] == f"{found['answer'].text} 12"


def test_the_readmes_python_runs(here, capsys):
    [code] = blocks("python", README)
    exec(code, {})
    assert re.fullmatch(r"([1-4]{4}/){3}[1-4]{4} 12\n", capsys.readouterr().out)


def test_its_commands_run(here, capsys):
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 5 and all(words[:3] == ["python", "-m", "stages"] for words in commands)
    said = []
    for words in commands:
        assert main(words[3:]) == 0
        said.append(capsys.readouterr().out)
    assert re.fullmatch(r"([1-4]{4}/){3}[1-4]{4}\n", said[0]) and len(said[1].splitlines()) == 13 and len(said[2].splitlines()) == 2
    assert said[3].startswith("export: wrote runs/solver: 4 files") and said[4] == said[0]
    assert "joint" in (here / "runs/solver/README.md").read_text() and "## Results" in (here / "runs/solver/README.md").read_text()


def test_every_setting_of_its_table_exists_and_none_is_missing():
    rows = re.findall(r"^\| `(.*?)` \|", PAGE.split("## Settings")[1].split("Ends:")[0], re.MULTILINE)
    names = {name.rpartition(".")[2] for row in rows for name in re.findall(r"[\w.]+", row)}
    generator = set(Generator.__init__.__annotations__) - {
        "model",
        "backbone",
        "prepared",
        "sampler",
        "remote_code",
        "runtime",
        "return",
    }
    assert names == set(Sampler.__dataclass_fields__) | generator


@pytest.mark.parametrize(
    ("setting", "evaluations"),
    [
        ("sampling.Sampler.steps=4", 4),
        ("sampling.Sampler.blocks=3", 12),
        ("sampling.Sampler.threshold=0.0", 1),
        ("sampling.Sampler.guidance=0.5", 24),
        ("generation.Generator.halt=@halting.by_change", 12),
        ("generation.Generator.refined_passes=0", 12),
        ("generation.Generator.batch_size=1", 12),
        ("sampling.Sampler.end_confidence=0.0", 12),
        ("sampling.Sampler.revise=@revising.least_probable", 12),
    ],
)
def test_settings_reach_the_generator(here, capsys, setting, evaluations):
    assert main(["generate", "--prompts=puzzles.txt", setting]) == 0
    assert f'"evaluations": {evaluations}}}' in capsys.readouterr().out.splitlines()[0]


def test_the_seed_and_the_temperature_decide(here, capsys):
    def said(*settings):
        assert main(["generate", "--prompts=puzzles.txt", *settings]) == 0
        return capsys.readouterr().out

    drawn = "sampling.Sampler.temperature=2.0"
    assert said(drawn) == said(drawn) != said(drawn, "SEED=1") and said() == said("SEED=1") != said(drawn)


def test_answers_leave_nothing_behind(here, capsys):
    before = {p for p in here.rglob("*") if p.is_file()}
    assert main(["generate", f"--prompt={PUZZLE}"]) == 0
    assert {p for p in here.rglob("*") if p.is_file()} == before


def solutions(puzzle):
    """Of a 4x4 puzzle, by trying every row of digits that fits."""
    rows = puzzle.split("/")
    choices = [[p for p in permutations("1234") if all(c in (".", d) for c, d in zip(row, p, strict=True))] for row in rows]
    boxes = [[(r, c) for r in (a, a + 1) for c in (b, b + 1)] for a in (0, 2) for b in (0, 2)]
    columns = [[(r, c) for r in range(4)] for c in range(4)]
    return [
        "/".join(map("".join, grid))
        for grid in product(*choices)
        if all(len({grid[r][c] for r, c in part}) == 4 for part in (*boxes, *columns))
    ]


def test_every_puzzle_of_the_documents_has_one_solution():
    found = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "pipeline/inference/generation.py"):
        found |= set(re.findall(r"[1-4.]{4}(?:/[1-4.]{4}){3}", page.read_text()))
    puzzles = {puzzle for puzzle in found if "." in puzzle}
    assert len(puzzles) >= 2 and {puzzle: len(solutions(puzzle)) for puzzle in puzzles} == dict.fromkeys(puzzles, 1)
