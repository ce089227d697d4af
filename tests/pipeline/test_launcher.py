"""The launcher: what is refused before anything runs, what runs nothing, where output goes, how errors look."""

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest

from stages.__main__ import main
from tests.conftest import ROOT, workspace
from tests.support.dvc import PATIENCE


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty workspace as the current folder, outside DVC."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.chdir(workspace(tmp_path / "run", "smoke"))
    return tmp_path / "run"


def left(folder):
    return {p.name for p in folder.iterdir()} - {"gin", "params.yaml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--chekc"], r"unknown flag --chekc; did you mean 'check'?"),
        (["prepare", "--confg=a.gin"], r"unknown flag --confg=a.gin; did you mean 'config'?"),
        (["prepare", "--seed", "3"], r"unknown flag --seed"),
        (["prepare", "--print_cnfig"], r"unknown flag --print_cnfig; did you mean 'print-config'?"),
        (["prepaer"], r"unknown stage 'prepaer'; did you mean 'prepare'?"),
        (["prepare", "DATA_SEED"], r"command line 'DATA_SEED': expected name.param=value"),
        (["prepare", "DATA_SED=1"], r"command line 'DATA_SED=1': no macro is called 'DATA_SED'; did you mean 'DATA_SEED'?"),
        (["warmup", "--plan"], "--plan belongs to: python -m stages configure"),
        (["configure", "--plan", "DRAWZ=3"], "command line 'DRAWZ=3': no stage uses this, or it is misspelt"),
        (
            ["configure", "--mfu", "0.5"],
            "--mfu: says for which devices to plan; give it with --plan",
        ),
        (["configure", "--plan", "--peak", "much"], "--peak is 'much'; expected a number above 0"),
        (["prepare", "--queue=gpu", "DATA_SEED=1"], "what params.yaml says at the commit; give --queue alone"),
        (["extract", "--verify", "--queue=gpu"], "what params.yaml says at the commit; give --queue alone"),
        (["generate", "--queue=gpu"], "--queue belongs to: python -m stages prepare or backbone"),
        (["prepare", "--config=nothing.gin"], r"nothing.gin does not exist; run: dvc repro configure"),
        (
            ["prepare", "DATA_SEED=1", "--config=a.gin"],
            "name.param=value, --device and --limit go over params.yaml, for one stage or a plan; give them without --config",
        ),
    ],
)
def test_wrong_usage_is_refused_before_anything_runs(here, capsys, arguments, message):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and message in told.err and len(told.err.splitlines()) == 1
    assert told.out == "" and not left(here)


@pytest.mark.parametrize(
    "text", ["preset: smok\n", "preset: smoke\nwarmpu: {}\n", "preset: [\n", "preset: smoke\nprepare: {bindings: {N: 1}}\n"]
)
def test_a_wrong_params_file_is_refused_before_anything_runs(here, capsys, text):
    (here / "params.yaml").write_text(text)
    assert main(["prepare"]) == 2
    assert capsys.readouterr().err.startswith("error: params.yaml") and not left(here)


def test_without_params_the_folder_is_asked_for(here, capsys):
    (here / "params.yaml").unlink()
    assert main(["prepare"]) == 2
    assert "params.yaml does not exist; run from the folder that holds it" in capsys.readouterr().err


def test_check_is_silent_and_runs_nothing(here, capsys):
    assert main(["prepare", "sudoku.Sudoku.train=3", "--check"]) == 0
    assert capsys.readouterr() == ("", "") and not left(here)


def test_check_finds_mistakes(here, capsys):
    assert main(["prepare", "sudoku.Sudoku.train=few", "--check"]) == 2
    assert "train expects int, got 'few' (str)" in capsys.readouterr().err


def test_an_override_after_check_is_checked_too(here, capsys):
    assert main(["prepare", "--check", "sudoku.Sudoku.train=few"]) == 2


def test_a_plan_is_told_and_nothing_runs(here, capsys):
    settings = ["DRAWS=3", "warmup.run.states=@sources.live", "RECURSION_STEPS=1"]  # every step is counted
    assert main(["configure", "--plan", "--peak", "100", *settings]) == 0
    told = capsys.readouterr().out
    lines = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")]
    assert lines == ["stage", "backbone", "extract", "warmup", "joint", "controls", "evaluate", "all"] and not left(here)
    assert "speed: 100 TFLOP/s (as given), 40% of them used (MFU, a guess: --mfu)" in told
    assert "cache: live is cheaper" in told and "M 3 draws" in told and "assumed: data/prepared is not there yet" in told


@pytest.mark.parametrize("arguments", [["--peak", "0"], ["--mfu", "1.5"], ["--peak", "1", "--mfu", "nan"]])
def test_no_plan_is_made_for_a_speed_that_is_none(here, monkeypatch, capsys, arguments):
    monkeypatch.setattr("pipeline.planning.plan.plan", lambda texts: pytest.fail("planned"))
    assert main(["configure", "--plan", *arguments]) == 2
    assert "expected a number above 0" in capsys.readouterr().err


def test_print_config_prints_the_overridden_text_and_runs_nothing(here, capsys):
    assert main(["prepare", "sudoku.Sudoku.train=3", "--print-config"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("from __gin__ import dynamic_registration\n") and "\nsudoku.Sudoku.train = 3\n" in told.out
    assert told.err == "" and not left(here)


def test_help_of_a_stage_shows_its_flags_and_below_them_its_settings(here, capsys):
    assert main(["prepare", "--help", "sudoku.Sudoku.train=33"]) == 0
    out, err = capsys.readouterr()
    flags, _, settings = out.partition("\nSETTINGS ")
    assert (
        "--print_config" in flags
        and re.search(r"  \.train = 33  \(int.*\)  training puzzles\.", settings)
        and err == ""
        and not left(here)
    )


@pytest.mark.parametrize(("arguments", "shown"), [(["--help"], "warmup"), (["-h"], "track"), (["configure", "-h"], "--plan")])
def test_help_without_settings_needs_no_params_file(here, capsys, arguments, shown):
    (here / "params.yaml").unlink()
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert shown in out and err == "" and not left(here)


def test_a_limit_is_a_setting(here, capsys):
    assert main(["evaluate", "--limit=3", "--print-config"]) == 0
    assert "\nevaluate.run.limit = 3\n" in capsys.readouterr().out


def test_a_prompt_reaches_the_stage_as_it_was_typed(here, monkeypatch):
    answered = []
    monkeypatch.setattr("pipeline.inference.console.answer", lambda generator, *own: answered.append((generator.args, *own)))
    assert main(["generate", "--prompt", "12", "--model", "1e5", "--confidence"]) == 0
    assert main(["generate", "--prompt=--{}"]) == 0
    assert answered == [(("1e5",), "12", "", True), (("outputs/joint",), "--{}", "", False)]


@pytest.mark.parametrize("flag", ["--help", "-x"])
def test_neither_help_nor_a_wrong_short_flag_runs_the_stage(here, flag):
    with contextlib.suppress(SystemExit):
        main(["prepare", "sudoku.Sudoku.train=3", "sudoku.Sudoku.validation=2", "sudoku.Sudoku.test=2", flag])
    assert not left(here)


@pytest.mark.parametrize("flag", ["--config", "--out"])
def test_a_flag_without_its_value_is_wrong_usage(here, flag):
    assert main(["prepare", flag]) == 2


SMALL = ("sudoku.Sudoku.train=3", "sudoku.Sudoku.validation=2", "sudoku.Sudoku.test=2")


def runs(folder):
    return sorted((folder / "runs/prepare").iterdir())


def test_outside_dvc_output_goes_to_runs_under_the_digest_of_the_settings(here):
    assert main(["prepare", *SMALL]) == 0
    assert left(here) == {"runs"} and left(here / "runs") == {"prepare"}
    (run,) = runs(here)
    assert re.fullmatch(r"[0-9a-f]{12}", run.name)
    assert {"manifest.json", "train.safetensors", "config.gin", "config.yaml"} <= left(run)


def test_the_same_settings_go_to_the_same_run_and_others_to_another(here):
    assert main(["prepare", *SMALL]) == 0
    assert main(["prepare", *SMALL, "sudoku.Sudoku.held_out=0.16666666666666666"]) == 0  # the default, said aloud
    assert len(runs(here)) == 1
    assert main(["prepare", *SMALL, "DATA_SEED=1"]) == 0
    assert len(runs(here)) == 2


def test_under_dvc_output_goes_where_it_is_configured(here, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "prepare")
    assert main(["prepare", *SMALL]) == 0
    assert left(here) == {"data"} and left(here / "data") == {"prepared"}


@pytest.mark.parametrize("under_dvc", [False, True])
def test_out_wins_over_both(here, monkeypatch, under_dvc):
    if under_dvc:
        monkeypatch.setenv("DVC_STAGE", "prepare")
    assert main(["prepare", *SMALL, "--out=elsewhere"]) == 0
    assert left(here) == {"elsewhere"}


def test_a_written_config_is_run_in_place_of_params(here, capsys):
    assert main(["prepare", *SMALL, "--print-config"]) == 0
    (here / "mine.gin").write_text(capsys.readouterr().out)
    (here / "params.yaml").unlink()
    assert main(["prepare", "--config=mine.gin"]) == 0
    (run,) = runs(here)
    assert json.loads((run / "manifest.json").read_text())["splits"]["train"]["examples"] == 3


def test_configure_writes_every_stage_where_it_is_told(here):
    assert main(["configure", "--out=texts"]) == 0
    assert left(here) == {"texts"} and {"prepare.gin", "report.gin"} <= left(here / "texts")


def test_the_config_of_a_run_names_its_own_output(here):
    assert main(["prepare", *SMALL]) == 0
    (run,) = runs(here)
    assert f"prepare.run.out = 'runs/prepare/{run.name}'\n" in (run / "config.gin").read_text()
    assert (
        f"prepare:\n  run:\n    corpus: '@sudoku.Sudoku()'\n    out: runs/prepare/{run.name}\n" in (run / "config.yaml").read_text()
    )


def test_a_device_is_short_for_its_setting(here, capsys):
    assert main(["warmup", "--device=cuda:1", "--print-config"]) == 0
    assert "\nruntime.Runtime.device = 'cuda:1'\n" in capsys.readouterr().out


def launch(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DVC_STAGE", None)
    command = [sys.executable, "-m", "stages", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_user_error_names_the_stage_to_run_without_a_traceback(here):
    done = launch(here, "warmup")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: data/backbone/model.json does not exist; it is written by stage backbone: run dvc repro backbone\n"
    )
    assert "Traceback" not in done.stderr and not left(here)


IMPORTS = """
import sys
import torch
import stages.controls, stages.evaluate
from pipeline.tracking import clearml, tensorboard, wandb
from stages.__main__ import main

assert main(["configure", "--check"]) == 0
from pipeline.training import flops, shapes
with torch.device("meta"), shapes.Shapes():
    assert flops.count(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 48
late = {"clearml", "tensorboard", "wandb", "requests", "peft", "transformers", "matplotlib"}
late |= {"torch._dynamo", "torch.distributed.fsdp"}
assert not late & set(sys.modules), f"imported too early: {late & set(sys.modules)}"
assert all(module.__name__.startswith("pipeline.tracking.") for module in (clearml, tensorboard, wandb))
import clearml, tensorboard, wandb
assert all("site-packages" in module.__file__ for module in (clearml, tensorboard, wandb))
"""


def test_packages_are_imported_by_what_needs_them_alone_and_trackers_do_not_shadow_theirs(here):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_user_error_is_one_line(here, capsys):
    assert main(["warmup"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_interrupt_ends_with_its_own_status(here, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.corpora.sudoku.Sudoku.prepare", interrupted)
    assert main(["prepare"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_has_enough_is_no_error(here):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "stages", "prepare", "--print-config"]
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            command,
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_a_bug_and_shows(here, monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("pipeline.corpora.sudoku.Sudoku.prepare", broken)
    with pytest.raises(BrokenPipeError):
        main(["prepare"])
