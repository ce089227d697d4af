"""A stage over several machines, by torchrun.

The environment variable SLOTLOOP_TORCHRUN holds its options: they change no result, so they are no setting. Where DVC runs, it
starts the stage with them. Every other machine follows: once that one is to be met, torchrun is started here too, and its processes
hear from the others what they run (``agreement``). When the stage has ended, this machine waits for the next.
"""

import contextlib
import importlib
import io
import logging
import multiprocessing
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import ConfigError, UserError
from pipeline.machine import launch as local
from pipeline.machine import process, slurm

OPTIONS = "SLOTLOOP_TORCHRUN"
EXAMPLE = "--nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 --rdzv-id=job"
PAUSE = 1.0  # seconds between looks for a stage to follow
ANSWER = 5.0  # seconds until a machine does not answer
LEVEL = "TORCH_CPP_LOG_LEVEL"  # which torch reads when it is imported
FOLLOW = ["follow"]  # arguments of the command line


@dataclass(frozen=True)
class Job:
    """What the options of torchrun say.

    Attributes:
        options: as they were given.
        meeting: the configuration of the rendezvous, without what the machine's part in it is.
        machines: how many there are at most.
        processes: on each.
        host: that all meet at; "" = there is but this machine.
        port: likewise.
    """

    options: tuple[str, ...]
    meeting: str
    machines: int
    processes: int
    host: str
    port: int

    def options_as(self, *, leader: bool) -> tuple[str, ...]:
        """Write the options for the machine that is given the stages, where all meet, or for one that follows."""
        meeting = ",".join(filter(None, (self.meeting, f"is_host={int(leader)}")))
        return (*self.options, f"--rdzv-conf={meeting}") if self.host else self.options


def quieten() -> None:
    """Import torch so that in this process it writes nothing of machines that cannot be reached or leave: errors say it."""
    if os.environ.get(OPTIONS) and "RANK" not in os.environ:
        level = os.environ.get(LEVEL)
        os.environ[LEVEL] = level or "FATAL"
        with process.importing():
            importlib.import_module("torch")
        os.environ[LEVEL] = level or local.QUIET[LEVEL]


def requested() -> Job | None:
    """Read what job the environment asks for; None within a process of one, or if it asks for none.

    Raises:
        ConfigError: torchrun does not know these options, machines cannot meet by them, or another variable asks for processes too.
    """
    text = os.environ.get(OPTIONS, "")
    if not text or "RANK" in os.environ:
        return None
    if others := [name for name in (local.PROCESSES, slurm.JOB) if os.environ.get(name)]:
        raise ConfigError(f"{others[0]} and {OPTIONS} are both set, and each says what processes to start; unset one of them")
    try:
        return _job(tuple(shlex.split(text)))
    except (AssertionError, RuntimeError, ValueError) as error:  # how the library refuses a value
        reason = str(error).rstrip(".")
        raise ConfigError(f"{OPTIONS} is '{text}': {reason}; expected options of torchrun, such as {EXAMPLE}") from None


def _job(options: tuple[str, ...]) -> Job:
    local.prepare()
    from torch.distributed import run
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import DEFAULT_PORT
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            parsed = run.parse_args([*options, *FOLLOW])
    except SystemExit:
        raise ValueError(heard.getvalue().rstrip().partition("error: ")[2] or "that asks for help") from None
    if [parsed.training_script, *parsed.training_script_args] != FOLLOW or parsed.module or parsed.no_python or parsed.run_path:
        raise ValueError("what torchrun is to run is said by the stage")
    if parsed.rdzv_backend != "c10d" and not parsed.standalone:
        raise ValueError(f"machines cannot meet by --rdzv-backend={parsed.rdzv_backend}")
    host, port = ("", 0) if parsed.standalone else parse_rendezvous_endpoint(parsed.rdzv_endpoint, DEFAULT_PORT)
    logging.disable(logging.ERROR)  # it tells what it takes for granted
    try:
        config, *_ = run.config_from_args(parsed)
    finally:
        logging.disable(logging.NOTSET)
    if config.nproc_per_node < 1:
        raise ValueError(f"--nproc-per-node is {config.nproc_per_node}, not 1 or more")
    if (config.max_nodes > 1) > bool(port):
        raise ValueError("several machines cannot meet by --standalone or at port 0")
    return Job(options, parsed.rdzv_conf, config.max_nodes, config.nproc_per_node, host, port)


def launch(arguments: list[str], job: Job) -> None:
    """Run ``python -m stages`` with ``arguments`` on all machines of a job, where DVC runs and where others follow.

    Raises:
        UserError: the machines have not met; else as ``launch.run``.
    """
    if job.machines > 1:
        _check(job)
        others = "another machine" if job.machines == 2 else f"{job.machines - 1} other machines"
        print(f"{arguments[0]}: waits at {job.host}:{job.port} for {others}, where python -m stages follow runs", flush=True)
    try:
        local.run(arguments, job.options_as(leader=True), job.processes)
    except local.NotMet as error:
        advice = f"run python -m stages follow on the others, with the same {OPTIONS}"
        raise UserError(f"{arguments[0]}: the machines have not met at {job.host}:{job.port} ({error}); {advice}") from None


def _check(job: Job) -> None:
    """Find out that the place to meet is this machine, before others wait for it there.

    Raises:
        ConfigError: it is another machine, there is none, or the port is taken.
    """
    every = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        with (
            socket.create_server(("", job.port), **every) as server,  # type: ignore[arg-type]
            socket.create_connection((job.host, job.port), ANSWER),
        ):
            server.settimeout(ANSWER)
            server.accept()[0].close()
    except OSError as error:
        what = str(error.strerror or error).partition(" (")[0]
        raise ConfigError(f"{OPTIONS}: {job.host}:{job.port} is no free port of this machine, where all meet ({what})") from None


def follow() -> None:
    """Join one stage after another that another machine is given, until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: no options, or none of a job with other machines.
    """
    job = requested()
    if job is None or job.machines == 1 or not job.host:
        raise ConfigError(f"follow joins other machines by {OPTIONS}; set it as there, such as {EXAMPLE}")
    try:
        socket.getaddrinfo(job.host, job.port)
    except OSError as error:
        raise ConfigError(f"{OPTIONS}: no machine is called '{job.host}' ({error.strerror})") from None
    print(f"follow: waits for stages at {job.host}:{job.port}", flush=True)
    with process.termination_noted() as terminated, contextlib.suppress(KeyboardInterrupt):
        while not terminated():
            if _answers(job):
                _join(job, terminated)
            time.sleep(PAUSE)
    print("follow: ended")


def _answers(job: Job) -> bool:
    """Whether a machine has been given a stage: that alone has all meet there."""
    with contextlib.suppress(OSError), socket.create_connection((job.host, job.port), ANSWER):
        return True
    return False


def _join(job: Job, terminated: Callable[[], object]) -> None:
    """Join a stage until it has ended, in a process of its own: the library does not hear signals while it waits for others."""
    one = multiprocessing.get_context("fork").Process(target=_joined, args=(job,))
    one.start()
    try:
        while one.is_alive() and not terminated():
            one.join(PAUSE)
    finally:
        one.terminate()
        one.join()


def _joined(job: Job) -> None:
    """Run this machine's processes of a stage; says in a line what went wrong."""
    for number, action in {signal.SIGTERM: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL, signal.SIGINT: signal.SIG_IGN}.items():
        signal.signal(number, action)  # Ctrl-C comes as SIGTERM from what follows
    process.die_with_parent()
    try:
        local.run(FOLLOW, job.options_as(leader=False), job.processes)
    except local.NotMet:  # the stage has ended before this machine came, or was given up before it began
        pass
    except UserError as error:
        print(f"follow: {error}", file=sys.stderr)
