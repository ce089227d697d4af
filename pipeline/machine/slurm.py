"""A stage as a job of a SLURM cluster, through ``submitit``; each task of the job is one process and runs the same command again.

The environment variable SLOTLOOP_SLURM says with what resources: it changes no result, so it is no setting. What submitted the job
waits for it and shows what it prints. It touches a file in the job's folder meanwhile: tasks save and end once the file is gone or
nobody has touched it for ``SILENCE`` seconds, so that no job outlives who waits for it. When SLURM warns of the time limit or a
preemption they save too, and the job is queued again.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.errors import ConfigError, UserError
from pipeline.files import remove
from pipeline.machine import launch as local
from pipeline.machine import process
from pipeline.machine.slurm_task import ENDED, PAUSE, WAITING, Task

JOB = "SLOTLOOP_SLURM"
EXAMPLE = '{"nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8, "timeout_min": 600, "slurm_partition": "gpu"}'
MOST = {  # by submitit's names
    "nodes": 9999, "tasks_per_node": 1024, "gpus_per_node": 1024, "cpus_per_task": 9999, "mem_gb": 99_999, "timeout_min": 525_600,
}  # fmt: skip
COMMAND = (sys.executable, "-m", "stages")
TIMEOUTS = "slurm_max_num_timeout"  # how often a job that ran out of time is queued again
CLUSTERS = ("slurm", "local")  # local: processes of this machine, for a trial
SILENCE = 300.0  # seconds without a touch until nobody does


def requested() -> dict[str, Any]:
    """Read what job the environment asks for; nothing within a process of one.

    Raises:
        ConfigError: the variable holds no parameters of a job, or SLOTLOOP_PROCESSES is set too.
    """
    text = os.environ.get(JOB, "")
    if not text or "RANK" in os.environ:
        return {}
    if local.PROCESSES in os.environ:
        raise ConfigError(f"{local.PROCESSES} and {JOB} are both set: processes here, and a job of a cluster; unset one of them")
    try:
        parameters = json.loads(text if text.lstrip().startswith(("{", "[")) else Path(text).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{JOB} is '{text}': {error}; expected a JSON object, or a file with one, such as {EXAMPLE}") from None
    if not isinstance(parameters, dict) or "timeout_min" not in parameters:
        raise ConfigError(f"{JOB} is '{text}'; expected a JSON object with at least timeout_min, such as {EXAMPLE}")
    for name, value in parameters.items():
        if name in MOST and (type(value) is not int or not 1 <= value <= MOST[name]):
            raise ConfigError(f"{JOB}: {name} is {value!r}; expected a whole number, 1 to {MOST[name]}")
        if name == TIMEOUTS and (type(value) is not int or value < 0):
            raise ConfigError(f"{JOB}: {name} is {value!r}; expected a whole number, 0 or more")
        if name == "cluster" and value not in CLUSTERS:
            raise ConfigError(f"{JOB}: cluster is {value!r}; expected {' or '.join(CLUSTERS)}")
        if name not in (*MOST, "cluster") and not name.startswith("slurm_"):
            names = ", ".join(("cluster", *MOST))
            raise ConfigError(f"{JOB}: unknown parameter '{name}'; expected {names}, or slurm_ and an option of sbatch")
    return parameters


def launch(arguments: list[str], parameters: dict[str, Any]) -> None:
    """Run ``python -m stages`` with ``arguments`` in every task of a job, and wait for all.

    Args:
        arguments: of the command line.
        parameters: of the job, as ``requested`` gives them.

    Raises:
        UserError: the cluster refused the job, or the error of the first process that failed; the others were stopped.
        Interrupted: SIGTERM came, and all have saved.
        KeyboardInterrupt: SIGINT came, and all have saved.
    """
    from pipeline.machine import snapshots  # brings torch

    folder, done = snapshots.root().resolve() / "slurm" / f"{arguments[0]}-{uuid.uuid4().hex[:8]}", False
    folder.mkdir(parents=True)
    try:
        with process.termination_noted() as terminated:
            _run(folder, arguments, parameters, terminated)
        done = True
    finally:
        (folder / WAITING).unlink(missing_ok=True)
        if done or not _begun(folder):  # else its logs stay to be read
            remove(folder)
        with contextlib.suppress(OSError):  # not empty
            folder.parent.rmdir()
            folder.parent.parent.rmdir()


def _run(folder: Path, arguments: list[str], parameters: dict[str, Any], terminated: Callable[[], str]) -> None:
    """Submit the job, wait for it, and raise what went wrong with it."""
    (folder / WAITING).touch()
    job = _submit(folder, arguments, parameters)
    print(f"{arguments[0]}: submitted as job {job.job_id}, {job.num_tasks} processes", flush=True)
    shown = [_Shown(folder / "0.out", sys.stdout), *(_Shown(folder / f"{rank}.err", sys.stderr) for rank in range(job.num_tasks))]
    try:
        _wait(job, folder, shown, terminated)
    except KeyboardInterrupt:
        _wait(job, folder, shown, lambda: True)
        raise
    finally:
        if not job.done():
            job.cancel(check=False)
    ends = _ends(job, folder)
    if failures := {rank: end for rank, end in ends.items() if end.exitcode}:
        raise local.cause(failures, job.num_tasks, str(folder))
    if missing := {*range(job.num_tasks)} - {*ends}:
        if came := terminated():
            raise process.Interrupted(f"{came}; run it again to continue")
        who = f"process {min(missing)} of {job.num_tasks}"
        raise UserError(f"job {job.job_id} ended without a word of {who}; its logs are in {folder}; run it again to continue")


def _submit(folder: Path, arguments: list[str], parameters: dict[str, Any]) -> Any:
    """Submit the job; its files go to the folder."""
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError:
        raise ConfigError(f"{JOB} needs the package submitit: pip install 'slotloop[slurm]'") from None
    resources = {"cluster": "slurm", "slurm_srun_args": ["--kill-on-bad-exit=1"], **parameters}
    cluster, timeouts = resources.pop("cluster"), resources.pop(TIMEOUTS, 3)
    if cluster == "slurm" and (missing := [name for name in ("sbatch", "srun", "sacct") if shutil.which(name) is None]):
        raise ConfigError(f"{JOB} is set, but this machine has no {missing[0]}; start it where jobs are submitted, or unset {JOB}")
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_num_timeout": timeouts})
        executor.update_parameters(name=f"slotloop-{arguments[0]}", **resources)
        return executor.submit(Task([*COMMAND, *arguments], str(folder), local.stage_variables(), SILENCE))
    except (NameError, TypeError, ValueError, AssertionError) as error:  # how it refuses parameters, the reason on the first line
        raise ConfigError(f"{JOB}: {str(error).splitlines()[0]}") from None
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}; mend {JOB}") from None


def _wait(job: Any, folder: Path, shown: "list[_Shown]", ending: Callable[[], object]) -> None:
    """Wait until a job is over. It is asked to end when ``ending`` says so, or one of its processes has failed."""
    until = None
    while not job.done():
        if until is None and (ending() or _failed(job, folder)):
            (folder / WAITING).unlink(missing_ok=True)
            until = time.monotonic() + (local.GRACE if _begun(folder) else 0)
        if until is None:
            with contextlib.suppress(OSError):  # somebody has removed the folder, which ends the job
                os.utime(folder / WAITING)
        elif time.monotonic() >= until:
            job.cancel(check=False)
            until = time.monotonic() + local.GRACE
        for file in shown:
            file.show()
        time.sleep(PAUSE)
    for file in shown:
        file.show()


def _failed(job: Any, folder: Path) -> bool:
    """Whether a process of the job has ended otherwise than done or asked to."""
    return any(end.exitcode not in (0, process.INTERRUPTED, -signal.SIGTERM) for end in _ends(job, folder).values())


def _begun(folder: Path) -> bool:
    """Whether a task of the job has ever run: then there are logs."""
    return any(folder.glob("*.err"))


def _ends(job: Any, folder: Path) -> dict[int, SimpleNamespace]:
    """How each process that has ended did, and when, by its rank."""
    ends = {}
    for rank in range(job.num_tasks):
        with contextlib.suppress(FileNotFoundError):
            status, moment = json.loads((folder / f"{ENDED}{rank}").read_bytes())
            ends[rank] = SimpleNamespace(exitcode=status, timestamp=moment)
    return ends


class _Shown:
    """A file of another process, shown here as it grows."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self.stream, self.position = path, stream, 0

    def show(self) -> None:
        """Print what has come since the last time."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.position)
            text = file.read()
            self.position += len(text)
            self.stream.write(text.decode(errors="replace"))
            self.stream.flush()
