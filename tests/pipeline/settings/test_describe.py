"""Help of a stage: every setting that reaches it, with type, value and meaning."""

import pytest

from pipeline.command_line import STAGES
from pipeline.settings import config, describe, params
from stages.__main__ import main


@pytest.fixture
def help_of(tmp_path):
    def help_of(stage, *overrides):
        (tmp_path / "params.yaml").write_text("preset: smoke\n")
        config.resolve(stage, params.read(tmp_path / "params.yaml", STAGES), overrides)
        return describe.settings_text(stage)

    return help_of


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_itself(help_of, stage):
    lines = help_of(stage).splitlines()
    assert lines[0].startswith("SETTINGS ")
    assert f"{stage}.run" in lines and any(line.startswith("  .out = ") for line in lines)


def test_a_setting_shows_type_value_and_meaning(help_of):
    text = help_of("warmup", "loop.fit.clip=2.5")
    assert "  .clip = 2.5  (float, at least 0)  largest gradient norm; 0 = off, the gradient is taken as it is." in text
    assert "  .steps = 6 (from %WARMUP_STEPS)  (int, at least 1)  optimizer steps at most." in text


def test_defaults_that_nobody_bound_are_shown(help_of):
    text = help_of("warmup")
    assert "  .clip = 1.0  (float, at least 0)  largest gradient norm; 0 = off, the gradient is taken as it is." in text
    assert "  .model = (given by the stage)  (Model)" in text
    assert "  .compute = (given by the stage)  (bool)" in text.partition("losses.masked_cross_entropy\n")[2]


def test_what_does_not_reach_the_stage_is_left_out(help_of):
    assert "sudoku.Sudoku" in help_of("prepare") and "sudoku.Sudoku" not in help_of("warmup")


def test_help_runs_nothing_and_knows_the_overrides(tmp_path, monkeypatch, capsys):
    from tests.conftest import workspace

    monkeypatch.chdir(workspace(tmp_path / "run", "smoke"))
    assert main(["prepare", "--help", "sudoku.Sudoku.train=33"]) == 0
    assert "  .train = 33  (int, at least 1)  training puzzles." in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"gin", "params.yaml"}
