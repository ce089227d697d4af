"""Several processes for one stage, through torch's own launcher; each runs the same command again.

As many on this machine as the environment variable SLOTLOOP_PROCESSES says: it changes no result, so it is no setting; over several
machines see ``torchrun``. A stage sees by its environment that it is one of several. As the command in dvc.yaml torchrun would make
30 to 40 lines of a one-line error, also when it is asked to end, and status 1 of 2 (wrong usage), 130 and 143 (ended by a signal).
"""

import contextlib
import hashlib
import logging
import os
import re
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, UserError
from pipeline.machine import process

PROCESSES = "SLOTLOOP_PROCESSES"
JOB = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process of its job
ERRORS = "SLOTLOOP_ERRORS"  # folder in which started processes leave their errors; what started them prints one
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # else the library warns of a process that is gone with what was called where
GRACE = 120  # seconds that processes have after SIGTERM, to finish a step and save


def leave_no_stray_rank() -> None:
    """Drop what a scheduler says of a job of one process; others are torchrun's to start.

    Raises:
        ConfigError: a job of several processes without what they need to find one another.
    """
    missing = [name for name in JOB if name not in os.environ]
    if not missing or not {"RANK", "WORLD_SIZE"} & {*os.environ}:
        return
    if os.environ.get("WORLD_SIZE", "1") != "1":
        says = f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that this is one of several processes"
        raise ConfigError(f"{says}, but {', '.join(missing)} are not set; start it by torchrun, or unset WORLD_SIZE and RANK")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def stage_variables() -> dict[str, str]:
    """Collect the variables of the environment that decide what a stage does, for processes that are started elsewhere."""
    return {name: value for name, value in os.environ.items() if name.startswith(("DVC_", "SLOTLOOP_"))}


def process_count() -> int:
    """Count the processes to start; 1 within one of several.

    Raises:
        ConfigError: the variable is no number.
    """
    if "RANK" in os.environ:
        return 1
    text = os.environ.get(PROCESSES, "1")
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise ConfigError(f"{PROCESSES} is '{text}'; expected how many processes to start, 1 or more")
    return int(text)


def launch(arguments: list[str], processes: int) -> None:
    """Run ``python -m stages`` with ``arguments`` in several processes of this machine, and wait for all; raises as ``run``."""
    run(arguments, ("--standalone", f"--nproc-per-node={processes}"), processes)


def prepare() -> None:
    """Set what torch reads of the environment when it is imported, or by the processes that it starts."""
    # Else a store of an earlier, killed attempt can answer, and processes wait for one another for ever (pytorch issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.update({**QUIET, **os.environ})


class NotMet(UserError):
    """The machines of a job have not met."""


def run(arguments: list[str], options: Sequence[str], processes: int) -> None:
    """Run ``python -m stages`` with ``arguments`` by torchrun, and wait for all processes.

    Args:
        arguments: of the command line.
        options: of torchrun; they go over those of this function.
        processes: on this machine.

    Raises:
        UserError: the error of the first process that failed, or what became of it; the others were stopped.
        NotMet: other machines have not come, or left before processes were started.
        Interrupted: SIGTERM came, and all have saved.
        KeyboardInterrupt: SIGINT came, and all have saved.
    """
    prepare()
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main

    ours = ["--max-restarts=0", f"--shutdown-timeout={GRACE}"]
    ours += ["--signals-to-handle=SIGTERM,SIGUSR1,SIGHUP,SIGQUIT"]  # SIGINT ends this process, which sends SIGTERM to all
    logging.disable(logging.ERROR)  # the library tells of every signal; what happened is told once, below
    try:
        with tempfile.TemporaryDirectory(prefix="slotloop-") as folder:
            os.environ[ERRORS] = folder
            try:
                main([*ours, f"--log-dir={folder}", *options, "-m", "stages", *arguments])
            except SignalException as error:
                messages = (text for rank in range(processes) if (text := _left(folder, rank)))
                raise process.Interrupted(next(messages, f"{error.sigval.name}; run it again to continue")) from None
            except ChildFailedError as error:
                failures = {failure.local_rank: failure for failure in error.failures.values()}
                where = "" if "--standalone" in options else " of this machine"
                raise cause(failures, processes, folder, where) from None
            except (RendezvousError, DistError) as error:
                raise NotMet(_reason(error)) from None
            except (AssertionError, KeyError, ValueError) as error:  # how the library refuses options
                raise ConfigError(f"torchrun refuses {' '.join(options)}: {error!r}") from None
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop(ERRORS, None)


def _reason(error: BaseException) -> str:
    """Why machines have not met, in a few words of the library."""
    return str(error.__cause__ or error).partition(". ")[0].rstrip(".") or "not all came in time"


def hand_over(message: str) -> bool:
    """Hand an error over, and say whether this process need not print it: what started it will, or another of this machine has."""
    if folder := os.environ.get(ERRORS):
        number = "LOCAL_RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "RANK"  # by which what started it names its processes
        Path(folder, f"error-{os.environ[number]}").write_text(message)
        return True
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun's; its folders of this attempt lie side by side
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes as soon as one has ended, and shall not leave this one silent
        with contextlib.suppress(OSError):
            try:
                (Path(file).parent.parent / hashlib.sha256(message.encode()).hexdigest()).touch(exist_ok=False)
            except FileExistsError:
                return True
    return False


def _left(folder: str, rank: int) -> str:
    file = Path(folder, f"error-{rank}")
    return file.read_text() if file.is_file() else ""


def cause(failures: Mapping[int, Any], processes: int, folder: str, where: str = "") -> UserError:
    """Find the error that ended a job: the first one that is not the consequence of another.

    Args:
        failures: by number of the process, each with ``exitcode`` and ``timestamp``.
        processes: how many were started.
        folder: in which they left their errors.
        where: words for which processes are numbered, if not all of the job.
    """
    rank, failure = min(failures.items(), key=lambda pair: (pair[1].exitcode == process.LOST, pair[1].timestamp))
    code, message, who = failure.exitcode, _left(folder, rank), f"process {rank} of {processes}{where}"
    if code in (-signal.SIGTERM, process.INTERRUPTED):
        return process.Interrupted(message or "SIGTERM; run it again to continue")
    if code < 0:
        name = signal.Signals(-code).name
        return UserError(f"{who} was ended by {name}, the others were stopped; run it again to continue")
    kind = ConfigError if code == 2 else UserError
    return kind(message or f"{who} failed with status {code}, the others were stopped")
