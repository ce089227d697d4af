"""A stage as a job of a cluster, with submitit's own executor for this machine; SLURM itself is nowhere needed, and not tested."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from pipeline.errors import ConfigError, UserError
from pipeline.machine import launch, process, slurm
from stages.__main__ import main
from tests.conftest import ROOT, workspace
from tests.support.dvc import PATIENCE, content, snapshot, wait_until
from tests.support.jobs import alone, completed, ended, member, nothing_left, running, start
from tests.support.optional import needs

needs("submitit")
HERE = {"cluster": "local", "tasks_per_node": 2, "timeout_min": 60}
STEPS = 150  # so many that the job is still at it when a test has seen that it began
MICRO = ("ACCUMULATION=4", "BATCH=8")
TRAINING = (*MICRO, f"loop.fit.steps={STEPS}", "loop.fit.save_every=1", "loop.fit.validate_every=25")
HANDLERS = "import os, signal, sys, time; rank = os.environ['RANK']; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "


@pytest.fixture(autouse=True)
def _one_process(monkeypatch, tmp_path):
    for name in (*launch.JOB, "LOCAL_RANK", launch.PROCESSES, launch.ERRORS, slurm.JOB):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def requested(monkeypatch, text):
    monkeypatch.setenv(slurm.JOB, text if isinstance(text, str) else json.dumps(text))
    return slurm.requested()


def test_no_job_is_asked_for(monkeypatch):
    assert slurm.requested() == {} and requested(monkeypatch, "") == {}


def test_parameters_stand_in_the_variable_or_in_a_file(monkeypatch, tmp_path):
    assert requested(monkeypatch, slurm.EXAMPLE)["slurm_partition"] == "gpu"
    (tmp_path / "job.json").write_text(json.dumps(HERE))
    assert requested(monkeypatch, str(tmp_path / "job.json")) == HERE


def test_a_process_of_a_job_sends_none(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert requested(monkeypatch, "no parameters") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "SLOTLOOP_SLURM is '{': .*; expected a JSON object, or a file with one, such as "),
        ("no/such.json", "SLOTLOOP_SLURM is 'no/such.json': .*No such file.*; expected a JSON object"),
        ("{}", "SLOTLOOP_SLURM is '{}'; expected a JSON object with at least timeout_min"),
        ({**HERE, "tasks": 2}, "SLOTLOOP_SLURM: unknown parameter 'tasks'; expected cluster, nodes, .* or slurm_ and an option of"),
        ({**HERE, "nodes": 0}, "SLOTLOOP_SLURM: nodes is 0; expected a whole number, 1 to 9999"),
        ({**HERE, "nodes": True}, "SLOTLOOP_SLURM: nodes is True; expected a whole number"),
        ({**HERE, "timeout_min": "60"}, "SLOTLOOP_SLURM: timeout_min is '60'; expected a whole number"),
        (
            {**HERE, "tasks_per_node": 100_000_000},
            "SLOTLOOP_SLURM: tasks_per_node is 100000000; expected a whole number, 1 to 1024",
        ),
        (
            {**HERE, "slurm_max_num_timeout": "x"},
            "SLOTLOOP_SLURM: slurm_max_num_timeout is 'x'; expected a whole number, 0 or more",
        ),
        ("[1]", r"SLOTLOOP_SLURM is '\[1\]'; expected a JSON object with at least timeout_min"),
        ({**HERE, "cluster": "debug"}, "SLOTLOOP_SLURM: cluster is 'debug'; expected slurm or local"),
    ],
)
def test_what_are_no_parameters_is_refused(monkeypatch, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        requested(monkeypatch, text)
    assert len(str(error.value).splitlines()) == 1


def test_processes_here_and_a_job_are_too_much(monkeypatch):
    monkeypatch.setenv(launch.PROCESSES, "2")
    with pytest.raises(ConfigError, match="SLOTLOOP_PROCESSES and SLOTLOOP_SLURM are both set"):
        requested(monkeypatch, HERE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace as the current folder, outside DVC, for a job of two processes."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv(slurm.JOB, json.dumps(HERE))
    monkeypatch.chdir(workspace(tmp_path / "run", "smoke"))
    return tmp_path / "run"


def refused(capsys, *arguments):
    """What a stage says that is refused as wrong usage."""
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_wrong_usage_is_one_error_and_leaves_nothing(here, monkeypatch, capsys, tmp_path):
    assert refused(capsys, "warmup", "NO_SUCH=1").startswith("error: command line 'NO_SUCH=1': no macro")
    monkeypatch.setenv(slurm.JOB, json.dumps({**HERE, "slurm_partitoin": "gpu"}))
    assert "SLOTLOOP_SLURM: Unknown argument 'partitoin'" in refused(capsys, "warmup")
    monkeypatch.setenv(slurm.JOB, json.dumps({**HERE, "nodes": 2}))
    assert refused(capsys, "warmup") == "error: SLOTLOOP_SLURM: LocalExecutor can use only one node. Use nodes=1"
    monkeypatch.setenv(slurm.JOB, json.dumps({**HERE, "cluster": "slurm"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "but this machine has no sbatch; start it where jobs are submitted" in refused(capsys, "warmup")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert refused(capsys, "warmup") == "error: SLOTLOOP_SLURM needs the package submitit: pip install 'slotloop[slurm]'"
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("flag", ["--check", "--print-config", "--help"])
def test_what_runs_nothing_submits_nothing(here, monkeypatch, flag):
    monkeypatch.setattr(slurm, "launch", lambda *_: pytest.fail("a job was submitted"))
    assert main(["warmup", flag]) == 0
    assert main(["prepare", *(f"sudoku.Sudoku.{split}=3" for split in ("train", "validation", "test"))]) == 0


def test_an_error_of_the_job_is_told_as_one_process_tells_it(here, tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "stages", "warmup"]
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    message = "error: data/backbone/model.json does not exist; it is written by stage backbone: run dvc repro backbone\n"
    assert (done.returncode, done.stderr) == (1, message)
    assert done.stdout.startswith("warmup: submitted as job ") and len(done.stdout.splitlines()) == 1


@pytest.fixture
def job(here, monkeypatch):
    """Runs a script in every task of a job, in place of a stage."""

    def run(script, act=None, **parameters):
        monkeypatch.setattr(slurm, "COMMAND", (sys.executable, "-c", HANDLERS + script))
        watcher = threading.Thread(target=act or (lambda: None))
        watcher.start()
        try:
            slurm.launch(["warmup"], {**HERE, **parameters})
        finally:
            watcher.join()

    return run


def folder_of(tmp_path):
    [folder] = (tmp_path / "scratch/slurm").iterdir()
    return folder


def in_job(tmp_path, name):
    """Wait for a file of the job."""
    wait_until(lambda: list((tmp_path / "scratch").glob(f"slurm/*/{name}")), f"{name} is there")


SAYS = "open(os.environ['SLOTLOOP_ERRORS'] + '/error-' + rank, 'w').write('of ' + rank); "
WAITS = "open(os.environ['SLOTLOOP_ERRORS'] + '/here-' + rank, 'w'); [time.sleep(0.1) for _ in range(600)]; "


def test_every_task_is_one_of_several_and_the_first_is_shown(job, capfd, tmp_path):
    job("print(*(os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')), sys.argv[1:]); print('é', file=sys.stderr)")
    shown = capfd.readouterr()
    assert shown.out.splitlines()[1:] == ["0 2 0 ['warmup']"] and shown.err == "é\n" * 2
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (SAYS + "sys.exit(2)", ConfigError, "of [01]"),
        ("rank == '1' and sys.exit(3); " + WAITS, UserError, "process 1 of 2 failed with status 3, the others were stopped"),
        (
            "rank == '1' and os.kill(os.getpid(), 9); " + WAITS,
            UserError,
            "process 1 of 2 was ended by SIGKILL, the others were stopped",
        ),
        (SAYS + "sys.exit(143)", process.Interrupted, "of [01]"),
        ("rank == '1' and os.kill(os.getppid(), 9)", UserError, "job .* ended without a word of process 1 of 2; its logs are in"),
    ],
)
def test_the_first_failure_is_told_and_the_others_end(job, tmp_path, script, kind, message):
    with pytest.raises(kind, match=message):
        job(script)
    assert not (folder_of(tmp_path) / slurm.WAITING).exists()


def test_who_waits_is_asked_to_end_and_the_tasks_do(job, tmp_path):
    def act():
        in_job(tmp_path, "here-0"), in_job(tmp_path, "here-1")
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(process.Interrupted, match="SIGTERM; run it again to continue"):
        job(WAITS, act)
    assert sorted(json.loads(file.read_text())[0] for file in folder_of(tmp_path).glob("ended.*")) == [143, 143]


def test_a_job_for_which_nobody_waits_ends(job, monkeypatch):
    monkeypatch.setattr(slurm, "SILENCE", 1.0)
    monkeypatch.setattr(os, "utime", lambda *_: None)
    with pytest.raises(process.Interrupted, match="SIGTERM"):
        job(WAITS)


def test_a_job_that_does_not_end_is_cancelled(job, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 1)
    deaf = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); rank == '1' or sys.exit(4); "
    )
    with pytest.raises(UserError, match="process 0 of 2 failed with status 4"):
        job(deaf + WAITS.replace("600", "100"))


def warn(waiting):
    """Send the warning of SLURM to every task of a job and to what it runs, as SLURM does."""
    [launcher] = [child for child in waiting.children() if "submitit.local._local" in child.cmdline()]
    for task in launcher.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            task.send_signal(signal.SIGUSR2)


def test_a_warning_queues_the_job_again(job, tmp_path, capfd):
    def act():
        in_job(tmp_path, "here-0"), in_job(tmp_path, "here-1")
        warn(psutil.Process())

    again = "print('attempt'); os.path.exists(os.environ['SLOTLOOP_ERRORS'] + '/here-' + rank) and sys.exit(0); "
    job(again + SAYS + WAITS, act)
    assert capfd.readouterr().out.splitlines()[1:] == ["attempt"] * 2


def test_a_job_that_timed_out_too_often_is_not_queued_again(job, tmp_path):
    def act():
        in_job(tmp_path, "here-0"), in_job(tmp_path, "here-1")
        warn(psutil.Process())

    with pytest.raises(process.Interrupted, match="of 0"):
        job(SAYS + WAITS, act, timeout_min=5, slurm_max_num_timeout=0)


RUNS = {  # in place of SLURM's commands, as far as a job of two tasks that nothing happens to needs them
    "sbatch": 'grep "^#SBATCH" $1 > options; SLURM_JOB_ID=7 SLURM_NTASKS=2 bash $1 > log 2>&1 & echo Submitted batch job 7',
    "srun": f"""echo $* > steps; while [ $1 != {sys.executable} ]; do shift; done
        for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task $* & done; wait""",
    "sacct": 'echo "JobID|State|NodeList"; echo "7|RUNNING|here"',
}
REFUSES = {"sbatch": "echo sbatch: error: invalid partition >&2; echo no job >&2; exit 1", "srun": "", "sacct": ""}
QUEUES = {
    "sbatch": "touch queued; echo Submitted batch job 8",
    "srun": "",
    "sacct": 'echo "JobID|State|NodeList"; echo "8|$(test -e cancelled && echo CANCELLED || echo PENDING)|here"',
    "scancel": "echo $* > cancelled",
}


@pytest.fixture
def cluster(job, monkeypatch, tmp_path):
    """Makes scripts the commands of SLURM."""

    def run(commands, *arguments, **parameters):
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        (tmp_path / "bin").mkdir()
        for name, script in commands.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        job(*arguments, cluster="slurm", **parameters)

    return run


def test_what_slurm_is_given(cluster, here, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("DVC_STAGE", "warmup")
    says = "print(os.environ['MASTER_ADDR'] != '', *(os.environ[name] for name in ('WORLD_SIZE', 'DVC_STAGE')))"
    cluster(RUNS, says, gpus_per_node=2, slurm_partition="gpu", slurm_signal_delay_s=300)
    assert capfd.readouterr().out.splitlines() == ["warmup: submitted as job 7, 2 processes", "True 2 warmup"]
    options = (here / "options").read_text().splitlines()
    given = ("ntasks-per-node=2", "gpus-per-node=2", "time=60", "partition=gpu", "signal=USR2@300", "job-name=slotloop-warmup")
    assert {f"#SBATCH --{option}" for option in given} <= {*options}
    assert "--kill-on-bad-exit=1" in (here / "steps").read_text()
    assert not (tmp_path / "scratch").exists()


def test_a_job_that_slurm_refuses_is_one_error(cluster, tmp_path):
    with pytest.raises(UserError, match="sbatch refused the job: sbatch: error: invalid partition no job; mend"):
        cluster(REFUSES, "")
    assert not (tmp_path / "scratch").exists()


def test_a_job_that_still_queues_is_cancelled_at_once(cluster, here, tmp_path):
    def act():
        wait_until((here / "queued").exists, "the job is submitted")
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(process.Interrupted, match="SIGTERM; run it again to continue"):
        cluster(QUEUES, "", act)
    assert (here / "cancelled").read_text() == "8\n"
    assert not (tmp_path / "scratch").exists()


@pytest.fixture
def training(copy_of, monkeypatch):
    """A workspace with what warmup needs; of its jobs nothing runs any longer at the end."""
    monkeypatch.delenv("SLOTLOOP_SCRATCH")
    with nothing_left(copy_of) as folder:
        yield folder


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory):
    """What warmup writes with ``TRAINING``."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    shutil.copytree(finished, folder, symlinks=True)
    return alone(folder, "warmup", *TRAINING)


def begun(folder):
    """A warmup as a job, a few steps on."""
    stage = start(folder, "warmup", *TRAINING, SLOTLOOP_SLURM=json.dumps(HERE))
    wait_until(lambda: snapshot(folder, "warmup") >= 3 or stage.poll() is not None, "warmup trains")
    assert snapshot(folder, "warmup") < STEPS - 10, stage.communicate()
    return stage


@pytest.mark.slow
def test_two_tasks_write_the_bytes_of_one_process(training):
    expected = alone(training, "warmup", *MICRO)
    assert completed(training, "warmup", *MICRO, SLOTLOOP_SLURM=json.dumps(HERE)) == expected
    assert not (training / ".scratch").exists()


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["stage", "0", "1"])
def test_who_is_asked_to_end_saves_and_another_run_goes_on(training, uninterrupted, whom):
    stage = begun(training)
    (stage if whom == "stage" else member(training, int(whom))).terminate()
    status, error = ended(stage)
    step = snapshot(training, "warmup")
    assert (status, error) == (143, f"error: warmup: SIGTERM after step {step} of {STEPS}; run it again to continue from there\n")
    assert not running(training) and 3 <= step < STEPS
    assert alone(training, "warmup", *TRAINING) == uninterrupted


@pytest.mark.slow
def test_a_killed_process_of_a_job_ends_it_with_its_name(training):
    stage = begun(training)
    member(training, 1).kill()
    said = "error: process 1 of 2 was ended by SIGKILL, the others were stopped; run it again to continue\n"
    assert ended(stage) == (1, said)
    assert not running(training)


@pytest.mark.slow
def test_interrupted_as_at_a_terminal_is_said_so(training):
    stage = begun(training)
    stage.send_signal(signal.SIGINT)
    assert ended(stage) == (130, "interrupted\n")
    assert not running(training) and snapshot(training, "warmup") >= 3


@pytest.mark.slow
def test_a_job_that_was_warned_goes_on_where_it_saved(training, uninterrupted):
    stage = begun(training)
    warn(psutil.Process(stage.pid))
    out, error = stage.communicate(timeout=PATIENCE)
    assert (stage.returncode, error, out.count("warmup: training")) == (0, "", 2)
    assert content(training / "outputs/warmup") == uninterrupted and not (training / ".scratch").exists()
