#!/usr/bin/env bash
# submitit 1.5.4, executor "local": a task hears nothing of the signal that is to test its end, and has one second at `cancel`.
#
# On a SLURM cluster a task is warned by a signal (SIGUSR2) before the time limit or a preemption, and submitit has the job queued
# again. `job._interrupt()` is there to try that: "Sends preemption / timeout signal to the job (for testing purpose)". Of a local
# job it reaches the process that started the task and not the task: that process is gone, the job counts as INTERRUPTED and done,
# and the task runs on with nobody over it. `job.cancel()` of a local job is SIGINT to the task, and SIGKILL a second later,
# whether or not it is saving its work. It matters for whoever tests how a job ends and goes on, since neither is what SLURM does.
#
# Output seen on 2026-11-30, Python 3.11, Linux:
#   _interrupt: the task heard nothing and runs on after 5 s; the job is INTERRUPTED, done: True
#   cancel: the task heard SIGINT and ended after 1 s, in the midst of its work
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check submitit==1.5.4 cloudpickle==3.1.2
cat > "$folder/ends.py" <<'PYTHON'
import os
import signal
import time
from pathlib import Path

import submitit

WORK, WATCHED = 20.0, 5.0  # seconds


def work(name):
    def note(number, _):
        with Path(f"{name}.heard").open("a") as file:
            file.write(f"{signal.Signals(number).name} ")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    Path(f"{name}.pid").write_text(str(os.getpid()))
    end = time.monotonic() + WORK
    while time.monotonic() < end:
        time.sleep(0.1)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def seen(name):
    executor = submitit.AutoExecutor("logs", cluster="local")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(work, name)
    while not (file := Path(f"{name}.pid")).is_file() or not file.read_text():
        time.sleep(0.1)
    pid, began = int(file.read_text()), time.monotonic()
    getattr(job, name)()
    while runs(pid) and time.monotonic() < began + WATCHED:
        time.sleep(0.05)
    after = round(time.monotonic() - began)
    heard = Path(f"{name}.heard").read_text().strip() if Path(f"{name}.heard").is_file() else "nothing"
    if not runs(pid):
        return f"{name}: the task heard {heard} and ended after {after} s, in the midst of its work"
    os.kill(pid, signal.SIGKILL)
    return f"{name}: the task heard {heard} and runs on after {after} s; the job is {job.state}, done: {job.done()}"


if __name__ == "__main__":
    for name in ("_interrupt", "cancel"):
        print(seen(name))
PYTHON
cd "$folder"
seen=$("$folder/env/bin/python" ends.py 2> errors)
echo "$seen"
[ "$seen" = "_interrupt: the task heard nothing and runs on after 5 s; the job is INTERRUPTED, done: True
cancel: the task heard SIGINT and ended after 1 s, in the midst of its work" ]
