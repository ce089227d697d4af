"""Options of torchrun in the environment: what is refused, each with one line, and what each machine makes of them."""

import os
import socket

import pytest

from pipeline.errors import ConfigError, UserError
from pipeline.machine import launch, slurm, torchrun
from stages.__main__ import main
from tests.conftest import workspace

MEETING = "--nnodes=2 --nproc-per-node=3 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:29400 --rdzv-id=job"


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for name in (*launch.JOB, "LOCAL_RANK", launch.PROCESSES, slurm.JOB):
        monkeypatch.delenv(name, raising=False)
    for name in ("OMP_NUM_THREADS", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_CPP_LOG_LEVEL"):  # as torchrun sets them
        monkeypatch.setenv(name, "1")


def requested(monkeypatch, text):
    monkeypatch.setenv(torchrun.OPTIONS, text)
    return torchrun.requested()


def test_the_options_say_where_machines_meet(monkeypatch):
    job = requested(monkeypatch, f"{MEETING} --rdzv-conf='join_timeout=9'")
    assert (job.machines, job.processes, job.host, job.port) == (2, 3, "127.0.0.1", 29400)
    assert job.options_as(leader=True) == (*job.options, "--rdzv-conf=join_timeout=9,is_host=1")
    assert job.options_as(leader=False)[-1] == "--rdzv-conf=join_timeout=9,is_host=0"
    assert requested(monkeypatch, MEETING).options_as(leader=True)[-1] == "--rdzv-conf=is_host=1"
    here = requested(monkeypatch, "--standalone --nproc-per-node=2")
    assert here.options_as(leader=True) == ("--standalone", "--nproc-per-node=2") and here.machines == 1


@pytest.mark.parametrize(("level", "later"), [(None, "ERROR"), ("INFO", "INFO")])
def test_processes_that_are_started_say_what_fails_and_as_much_more_as_the_user_asks(monkeypatch, level, later):
    monkeypatch.setenv(torchrun.OPTIONS, MEETING)
    monkeypatch.delenv(torchrun.LEVEL)
    if level:
        monkeypatch.setenv(torchrun.LEVEL, level)
    torchrun.quieten()
    assert os.environ[torchrun.LEVEL] == later


def test_without_the_variable_or_within_a_job_nothing_is_requested(monkeypatch):
    assert requested(monkeypatch, "") is None
    monkeypatch.setenv("RANK", "0")
    assert requested(monkeypatch, MEETING) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--nope", "unrecognized arguments: --nope"),
        ("--max-restarts=x --standalone", "argument --max-restarts/--max_restarts: invalid int value: 'x'"),
        ("--help", "that asks for help"),
        ("--nnodes='2", "No closing quotation"),
        (f"{MEETING} train.py", "what torchrun is to run is said by the stage"),
        (f"{MEETING} -m train", "what torchrun is to run is said by the stage"),
        (f"{MEETING} -m", "what torchrun is to run is said by the stage"),
        (f"{MEETING} --no-python", "what torchrun is to run is said by the stage"),
        ("--nnodes=2 --master-addr=127.0.0.1", "machines cannot meet by --rdzv-backend=static"),
        ("--nnodes=2 --standalone", "several machines cannot meet by --standalone or at port 0"),
        (MEETING.replace("29400", "0"), "several machines cannot meet by --standalone or at port 0"),
        (MEETING.replace("29400", "x"), 
            "The port number of the rendezvous endpoint '127.0.0.1:x' must be an integer between 0 and 65536"),
        (MEETING.replace("=2", "=x"), "invalid literal for int() with base 10: 'x'"),
        (MEETING.replace("=3", "=y"), "Unsupported nproc_per_node value: y"),
        (MEETING.replace("=3", "=0"), "--nproc-per-node is 0, not 1 or more"),
        (f"{MEETING} --rdzv-conf=a", "The rendezvous configuration option 'a' must have a value specified"),
    ],
)  # fmt: skip
def test_what_torchrun_or_a_job_cannot_use_is_one_line(monkeypatch, capfd, text, message):
    with pytest.raises(ConfigError) as error:
        requested(monkeypatch, text)
    assert str(error.value) == f"SLOTLOOP_TORCHRUN is '{text}': {message}; expected options of torchrun, such as {torchrun.EXAMPLE}"
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace as the current folder, outside DVC."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.chdir(workspace(tmp_path / "run", "smoke"))


def refused(capsys, *arguments, status=2):
    """What is said where a command is refused."""
    assert main(arguments) == status
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("other", "text"), [(launch.PROCESSES, "1"), (slurm.JOB, '{"timeout_min": 1}')])
def test_two_ways_to_start_processes_are_refused(here, monkeypatch, capsys, other, text):
    monkeypatch.setenv(torchrun.OPTIONS, MEETING)
    monkeypatch.setenv(other, text)
    message = f"error: {other} and SLOTLOOP_TORCHRUN are both set, and each says what processes to start; unset one of them"
    assert refused(capsys, "warmup") == refused(capsys, "follow") == message


@pytest.mark.parametrize("text", ["", "--standalone --nproc-per-node=2", MEETING.replace("--nnodes=2", "--nnodes=1")])
def test_there_has_to_be_a_machine_to_follow(monkeypatch, capsys, text):
    monkeypatch.setenv(torchrun.OPTIONS, text)
    assert refused(capsys, "follow").startswith("error: follow joins other machines by SLOTLOOP_TORCHRUN; set it as there")


def test_machines_meet_where_the_stage_was_given(here, monkeypatch, capsys):
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("processes started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(torchrun.OPTIONS, MEETING.replace("29400", str(port)))
        said = f"error: SLOTLOOP_TORCHRUN: 127.0.0.1:{port} is no free port of this machine, where all meet ("
        assert refused(capsys, "warmup") == f"{said}Address already in use)"

    def elsewhere(*_):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", elsewhere)
    assert refused(capsys, "warmup") == f"{said}Connection refused)"


def test_a_name_that_no_machine_has_is_not_waited_for(monkeypatch, capsys):
    def no_such(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such)
    monkeypatch.setenv(torchrun.OPTIONS, MEETING.replace("127.0.0.1", "elsewhere"))
    assert refused(capsys, "follow") == "error: SLOTLOOP_TORCHRUN: no machine is called 'elsewhere' (Name or service not known)"


def test_machines_that_do_not_come_are_one_line_and_one_that_is_there_is_said_what_it_waits_for(monkeypatch, capsys):
    def in_vain(arguments, options, processes):
        assert (arguments, options[-1], processes) == (["warmup"], "--rdzv-conf=is_host=1", 3)
        raise launch.NotMet("not all came in time")

    monkeypatch.setattr(launch, "run", in_vain)
    monkeypatch.setattr(torchrun, "_check", lambda _: None)
    with pytest.raises(UserError, match=r"^warmup: the machines have not met at 127.0.0.1:29400 \(not all came in time\); run "):
        torchrun.launch(["warmup"], requested(monkeypatch, MEETING))
    said = "warmup: waits at 127.0.0.1:29400 for another machine, where python -m stages follow runs\n"
    assert capsys.readouterr().out == said
