"""Several processes for one stage: how many, and one error, once, with the status of the stage."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError, UserError
from pipeline.machine import launch, process
from stages.__main__ import main
from tests.conftest import ROOT, workspace
from tests.support.dvc import PATIENCE


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for name in (*launch.JOB, "LOCAL_RANK", launch.PROCESSES, launch.ERRORS, "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("text", "expected"), [(None, 1), ("1", 1), ("2", 2), ("64", 64)])
def test_the_environment_says_how_many(monkeypatch, text, expected):
    if text:
        monkeypatch.setenv(launch.PROCESSES, text)
    assert launch.process_count() == expected


@pytest.mark.parametrize("text", ["", "0", "-2", "two", "2.0", " 2", "1e3", "02", "10000"])
def test_what_is_no_number_of_processes_is_refused(monkeypatch, text):
    monkeypatch.setenv(launch.PROCESSES, text)
    with pytest.raises(ConfigError, match=f"SLOTLOOP_PROCESSES is '{text}'; expected how many processes to start, 1 or more"):
        launch.process_count()


def test_one_of_several_starts_no_others(monkeypatch):
    monkeypatch.setenv(launch.PROCESSES, "2")
    monkeypatch.setenv("RANK", "0")
    assert launch.process_count() == 1


def test_an_error_of_all_processes_is_told_once_as_one_process_tells_it(tmp_path):
    folder, temporary = workspace(tmp_path / "run", "smoke"), tmp_path / "temporary"
    temporary.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), launch.PROCESSES: "2", "TMPDIR": str(temporary)}
    env.pop("DVC_STAGE", None)
    command = [sys.executable, "-m", "stages", "warmup"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    message = "error: data/backbone/model.json does not exist; it is written by stage backbone: run dvc repro backbone\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    # The first process may be stopped before it has removed its empty folder of unfinished work.
    assert {path.name for path in folder.iterdir()} - {".scratch"} == {"gin", "params.yaml"}
    assert not [path for path in temporary.iterdir() if path.name.startswith(("slotloop", "torchelastic"))]


@pytest.mark.parametrize("stray", [{"RANK": "3"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "LOCAL_RANK": "2"}])
def test_what_a_scheduler_says_of_one_process_is_left_aside(monkeypatch, stray):
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    launch.leave_no_stray_rank()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & {*os.environ}


def test_a_part_of_a_job_is_one_error(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert main(["warmup", "--check"]) == 2
    assert capsys.readouterr().err == (
        "error: process 1: WORLD_SIZE=8 says that this is one of several processes, but MASTER_ADDR, MASTER_PORT are not set; "
        "start it by torchrun, or unset WORLD_SIZE and RANK\n"
    )


def test_a_whole_job_is_left_as_it_is(monkeypatch):
    job = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    launch.leave_no_stray_rank()
    assert {name: os.environ[name] for name in job} == job


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace as the current folder, outside DVC, for two processes; starting them fails."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv(launch.PROCESSES, "2")
    monkeypatch.setattr(launch, "launch", lambda *_: pytest.fail("processes started"))
    monkeypatch.chdir(workspace(tmp_path / "run", "smoke"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("number", "argument", "message"),
    [("none", "BATCH=32", "SLOTLOOP_PROCESSES is 'none'"), ("2", "NO_SUCH=1", "command line 'NO_SUCH=1': no macro")],
)
def test_wrong_usage_is_refused_before_processes_start(here, monkeypatch, capsys, number, argument, message):
    monkeypatch.setenv(launch.PROCESSES, number)
    assert main(["warmup", argument]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("flag", ["--check", "--print-config", "--help"])
def test_what_runs_nothing_starts_nothing(here, flag):
    assert main(["warmup", flag]) == 0


def test_a_stage_that_is_not_shared_runs_alone(here):
    assert main(["prepare", *(f"sudoku.Sudoku.{split}=3" for split in ("train", "validation", "test"))]) == 0
    assert [path.name for path in (here / "runs").iterdir()] == ["prepare"]


def failure(code, timestamp=1):
    return SimpleNamespace(exitcode=code, timestamp=timestamp)


def told(folder, **messages):
    for name, message in messages.items():
        (folder / name.replace("_", "-")).write_text(message)
    return str(folder)


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ({0: failure(1, 2), 1: failure(1, 1)}, UserError, "of 1"),
        ({0: failure(process.LOST, 1), 1: failure(1, 2)}, UserError, "of 1"),
        ({0: failure(process.LOST, 2), 1: failure(process.LOST, 1)}, UserError, "of 1"),
        ({0: failure(2)}, ConfigError, "of 0"),
        ({0: failure(process.INTERRUPTED)}, process.Interrupted, "of 0"),
        ({2: failure(-signal.SIGTERM)}, process.Interrupted, "SIGTERM; run it again to continue"),
        ({2: failure(1)}, UserError, "process 2 of 3 failed with status 1, the others were stopped"),
        (
            {0: failure(process.LOST, 1), 2: failure(-signal.SIGKILL, 1)},
            UserError,
            "process 2 of 3 was ended by SIGKILL, the others were stopped; run it again to continue",
        ),
    ],
)
def test_the_first_failure_that_is_no_consequence_of_another_is_told(tmp_path, failures, kind, message):
    error = launch.cause(failures, 3, told(tmp_path, error_0="of 0", error_1="of 1"))
    assert type(error) is kind and str(error) == message


def test_under_torchrun_the_first_to_fail_with_a_message_prints_it(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for rank in "01":
        (tmp_path / rank).mkdir()
    heard = []
    for rank, message in [("0", "a"), ("1", "a"), ("1", "b")]:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        heard.append(launch.hand_over(message))
    assert heard == [False, True, False]


def test_one_process_tells_its_error_itself():
    assert not launch.hand_over("a")
