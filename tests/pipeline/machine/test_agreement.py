"""What the processes of a job run is one thing, and who follows learns it; everything else is refused with the same line in all."""

import datetime
import json
import os
from dataclasses import asdict

import pytest
import torch.distributed as dist

from pipeline.errors import ConfigError
from pipeline.machine import agreement
from pipeline.machine.agreement import Work, agreed
from tests.support.dvc import content
from tests.support.jobs import alone, forked

FOLLOWS, WARMUP, JOINT = (), ("warmup", "--out", "a b"), ("joint",)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(agreement, "PATIENCE", datetime.timedelta(milliseconds=1))


def exchanged(rank, *commands, elsewhere=None):
    """What the process of a number hears among others of which each was given a command, and one perhaps runs in another folder."""
    store = dist.HashStore()
    for number, command in enumerate(commands):
        work = Work([*command], "/else" if number == elsewhere else os.getcwd(), {"SLOTLOOP_RAW": str(number)})
        store.set(f"work-{number}", json.dumps(asdict(work)))
    return agreed(store, rank, len(commands), commands[rank])


@pytest.mark.parametrize(("commands", "first"), [((WARMUP, WARMUP), 0), ((WARMUP, FOLLOWS), 0), ((FOLLOWS, WARMUP, FOLLOWS), 1)])
def test_all_run_what_the_first_with_a_command_runs(commands, first):
    for rank in range(len(commands)):
        number, work = exchanged(rank, *commands)
        assert (number, tuple(work.command), work.folder) == (first, WARMUP, os.getcwd())


def test_who_follows_hears_what_the_others_have_of_the_environment(monkeypatch):
    assert exchanged(0, FOLLOWS, WARMUP)[1].variables == {"SLOTLOOP_RAW": "1"}
    for name in ("DVC_STAGE", "SLOTLOOP_TRUNKS", "SLOTLOOP_ERRORS", "SLOTLOOP_TORCHRUN", "HOME"):
        monkeypatch.setenv(name, "x")
    taken = agreement.variables()
    assert {"DVC_STAGE", "SLOTLOOP_TRUNKS"} <= taken.keys() and not {"SLOTLOOP_ERRORS", "SLOTLOOP_TORCHRUN", "HOME"} & taken.keys()


def test_no_secret_leaves_its_machine_and_what_was_set_here_gives_way(monkeypatch):
    for name in ("DVC_STUDIO_TOKEN", "SLOTLOOP_API_KEY", "SLOTLOOP_SCRATCH", "SLOTLOOP_TORCHRUN"):
        monkeypatch.setenv(name, "here")
    assert not {"DVC_STUDIO_TOKEN", "SLOTLOOP_API_KEY"} & agreement.variables().keys()
    before = agreement.variables()
    try:
        Work(WARMUP, "/", {"SLOTLOOP_RAW": "there"}).take_over()
        assert agreement.variables() == {"SLOTLOOP_RAW": "there"}
        assert os.environ["DVC_STUDIO_TOKEN"] == os.environ["SLOTLOOP_TORCHRUN"] == "here"
    finally:
        del os.environ["SLOTLOOP_RAW"]
        os.environ.update(before)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(
    ("commands", "message"),
    [
        (
            (FOLLOWS, WARMUP, JOINT),
            "the processes of a job run one command, but process 1 runs 'warmup --out 'a b'' and process 2 runs 'joint'; start all",
        ),
        ((FOLLOWS,) * 3, "no process of this job was given a stage: only machines that follow have met"),
    ],
)
def test_two_commands_or_none_are_refused_in_all(rank, commands, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        exchanged(rank, *commands)


@pytest.mark.parametrize(("rank", "elsewhere"), [(0, 1), (1, 0)])
def test_who_follows_is_in_the_folder_of_the_stage(rank, elsewhere):
    folders = ["/else" if number == elsewhere else os.getcwd() for number in (0, 1)]
    message = f"^the stage runs in {folders[0]}, but process 1 follows in {folders[1]}; they share one folder$"
    with pytest.raises(ConfigError, match=message):
        exchanged(rank, WARMUP, FOLLOWS, elsewhere=elsewhere)
    assert exchanged(rank, WARMUP, WARMUP, elsewhere=elsewhere)[0] == 0  # torchrun by hand: one's own matter


SCRIPT = """
import os
from stages.__main__ import main

commands = {}
command = commands[int(os.environ["RANK"])]
if command != ["follow"]:
    os.environ["DVC_STAGE"] = "test"
raise SystemExit(main(command))
"""


def test_a_process_that_follows_does_its_part_and_one_with_the_command_writes(copy_of):
    short = ["warmup", "ACCUMULATION=4", "BATCH=8", "loop.fit.steps=3"]
    expected = alone(copy_of, *short)
    done = forked(SCRIPT.format((["follow"], short)), 2, copy_of)
    assert [(process.returncode, process.stderr) for process in done] == [(0, "")] * 2
    assert done[0].stdout == "follow: warmup ACCUMULATION=4 BATCH=8 loop.fit.steps=3\n"
    assert "warmup: step 3/3" in done[1].stdout
    assert content(copy_of / "outputs/warmup") == expected


def test_two_stages_at_once_are_refused_with_one_line(copy_of):
    done = forked(SCRIPT.format((["warmup"], ["joint"])), 2, copy_of)
    message = "the processes of a job run one command, but process 0 runs 'warmup' and process 1 runs 'joint'"
    for rank, process in enumerate(done):
        assert process.returncode == 2
        assert process.stderr == f"error: process {rank}: {message}; start all of them with the same\n"
