"""One task of a job that ``slurm`` has submitted: it runs the stage as a process of its own and passes on what SLURM says.

The stage is asked to end at SIGTERM, when nobody waits for the job any longer, and at the signal by which SLURM warns of the time
limit or a preemption; after that one the job is queued again. How the stage ended lies as a file in the job's folder.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.files import write_atomic
from pipeline.machine import launch

WAITING = "waiting"  # file that is touched as long as somebody waits for the job, and removed to end it
ENDED = "ended."  # files, by rank: status of a process, and when it ended
PAUSE = 0.5  # seconds between looks at processes and files


@dataclass
class Task:
    """Runs a command as one of several processes; submitit pickles it, so it holds nothing but names.

    Args:
        command: to run.
        folder: of the job, which all its machines see.
        variables: of the environment that the command needs, wherever it runs.
        silence: seconds after which nobody waits who has not touched the file.
    """

    command: list[str]
    folder: str
    variables: dict[str, str]
    silence: float

    def __call__(self) -> None:
        """Run the command and leave how it ended."""
        import submitit
        from submitit.helpers import TorchDistributedEnvironment

        rank = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True).rank
        warning = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        requeue: Any = signal.getsignal(warning)  # submitit's
        came = set[int]()
        for number in (signal.SIGTERM, warning):
            signal.signal(number, lambda number, _: came.add(number))
        status = self._run(rank, warning, came)
        if status and warning in came:
            if rank:  # the first one queues the job again, for all
                raise SystemExit(0)
            with contextlib.suppress(submitit.core.utils.UncompletedJobError):  # not again: it timed out too often
                requeue(warning, None)
        write_atomic(Path(self.folder, f"{ENDED}{rank}"), json.dumps([status, time.time()]).encode())

    def checkpoint(self) -> Any:
        """Tell submitit what to queue again: the same, for the stage goes on from its own snapshot."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, rank: int, warning: int, came: set[int]) -> int:
        """Run the command; asks it to end once a signal came or nobody waits. Returns its status."""
        folder, touched, noticed = Path(self.folder), 0, time.monotonic()
        for name in (f"{ENDED}{rank}", f"error-{rank}"):  # of an earlier attempt
            (folder / name).unlink(missing_ok=True)
        environment = {**launch.QUIET, **os.environ, **self.variables, launch.ERRORS: self.folder}
        ignore = partial(signal.signal, warning, signal.SIG_IGN)  # SLURM sends it to every process of a task
        with (folder / f"{rank}.out").open("ab") as out, (folder / f"{rank}.err").open("ab") as err:
            process = subprocess.Popen(self.command, stdout=out, stderr=err, env=environment, preexec_fn=ignore)
        ending = False
        while (status := process.poll()) is None:
            if (now := _touched(folder / WAITING)) != touched:
                touched, noticed = now, time.monotonic()  # by this machine's clock: those of others differ
            if not ending and (came or not touched or time.monotonic() - noticed > self.silence):
                process.terminate()
                ending = True
            time.sleep(PAUSE)
        return status


def _touched(file: Path) -> int:
    """When a file was last touched; 0 if it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_mtime_ns
    return 0
