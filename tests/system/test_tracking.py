"""Tracking end to end: runs, senders and a server as processes that die, hang and come back. Every row is there once."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, TRAINING, workspace
from tests.support.dvc import snapshot
from tests.support.fake_clearml import KEY, SECRET, SINGLE, FakeClearML, without_clearml

PATIENCE = 900.0  # seconds until a test that waits for what never comes gives up
LONG_AFTER = 3600.0  # seconds after its run until a sender gives up: longer than a test waits for the run
ROWS = 80

RUN = '''
"""A training stage without torch: a row at a time, a snapshot every four, continued from there if it was killed; before some rows
it waits until it may go on, and at its end for its sender as long as that needs."""

import json, sys, time
from pathlib import Path
from pipeline.tracking import run_log
from pipeline.files import write_atomic

run_log.GRACE = float("inf")
known = json.loads(sys.argv[1])
out, snapshot = Path(known["out"]), Path(f"snapshot-{known['identity']}")
settings = {f"{known['stage']}.run": {"out": known["out"], "rows": known["rows"], "identity": known["identity"]}}
inputs = [Path(name) for name in known["inputs"]]
facts = run_log.RunInfo(known["stage"], known["order"], "smoke", known["identity"] * 64, "c" * 64, settings, out, inputs)
with run_log.recorded(facts, "track.gin"):
    done = int(snapshot.read_text()) if snapshot.exists() else 0
    write_atomic(out / "curves.csv", b"step,loss\\n" + b"".join(b"%d,%d\\n" % (step, step * step) for step in range(done)))
    for step in range(done, known["rows"]):
        while step in known["holds"] and not Path(f"go-{step}").exists():
            time.sleep(0.01)
        with (out / "curves.csv").open("a") as file:
            file.write(f"{step},{step * step}\\n")
        if step % 4 == 3:
            write_atomic(snapshot, str(step + 1).encode())
    write_atomic(out / "config.gin", run_log.gin_text(settings).encode())
    write_atomic(out / "metrics.json", b'{"steps": %d}' % known["rows"])
snapshot.unlink(missing_ok=True)
'''

TRACK = """from __gin__ import dynamic_registration
from pipeline.tracking import clearml
from pipeline.tracking import mlflow
from pipeline.tracking import tensorboard
from pipeline.tracking import wandb
from stages import track
track.run.every = 0.2
track.run.patience = {patience}
track.run.trackers = [{trackers}]
"""


class Workspace:
    """A folder in which runs are recorded, and a server."""

    def __init__(self, folder: Path, server: FakeClearML) -> None:
        self.folder, self.server = folder, server
        self.environment = without_clearml(dict(os.environ), str(folder / "home"))
        for name in [n for n in self.environment if n.startswith(("DVC_", "SLOTLOOP_", "GIT_"))]:
            del self.environment[name]
        self.environment |= {"PYTHONPATH": str(ROOT), "GIT_CEILING_DIRECTORIES": str(folder.parent), "OMP_NUM_THREADS": "1"}
        self.server_settings = server.environment()
        self.started: list[subprocess.Popen] = []
        folder.mkdir(exist_ok=True)
        (folder / "run.py").write_text(RUN)
        self.track()

    def track(self, patience=LONG_AFTER, trackers="@clearml.ClearML()", more=""):
        (self.folder / "track.gin").write_text(TRACK.format(patience=patience, trackers=trackers) + more)

    def start(self, rows=ROWS, holds=(), stage="warmup", identity="a", inputs=(), order=3, out="", **environment):
        """Start a run that waits for ``go`` before each row of ``holds``."""
        out = out or f"outputs/{stage}-{identity}"
        known = {"rows": rows, "holds": holds, "stage": stage, "identity": identity, "inputs": inputs, "order": order, "out": out}
        return self.popen([sys.executable, "run.py", json.dumps(known)], **environment)

    def go(self, step):
        (self.folder / f"go-{step}").touch()

    def popen(self, command, **environment):
        settings = {**self.environment, **self.server_settings, **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=self.folder, env=settings, start_new_session=True, **pipes)
        self.started.append(process)
        return process

    def run(self, **settings):
        """A run that must go well; returns what it printed."""
        process = self.start(**settings)
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and not error, error
        return out

    def ship(self, expect=0, **environment):
        process = self.popen([sys.executable, "-m", "stages", "track", "--ship", "--config", "track.gin"], **environment)
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == expect and "Traceback" not in error, out + error
        return out + error

    def records(self):
        return sorted(file.parent for file in (self.folder / ".tracking").glob("*/record.json"))

    def senders(self):
        return [p for p in psutil.process_iter(["cmdline"]) if is_sender(p.info["cmdline"] or [], self.folder)]

    def kill_senders(self):
        """Kill every sender, and wait until each is over, hence holds no record's lock any more."""
        killed = self.senders()
        for sender in killed:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends by itself at this very moment
                sender.kill()
        wait_until(lambda: all(map(is_over, killed)), "senders that were killed end")

    def gone(self):
        """Wait until no sender is left."""
        wait_until(lambda: not self.senders(), "senders end")

    def log(self):
        return "".join((folder / "log").read_text() for folder in self.records())

    def rows(self, task=None):
        """Stored steps of the one task."""
        (task,) = [task] if task else self.server.tasks
        return self.server.scalars(task).get("loss/loss", {})


def is_over(process):
    """Whether it has let go of all that it held. Its command line is gone before its files are closed."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_sender(command, folder):
    return "--follow" in command and str(folder) in command[command.index("--follow") + 1]


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited for: {what}"
        time.sleep(0.02)


def expected(rows=ROWS):
    return {step: float(step * step) for step in range(rows)}


@pytest.fixture
def server():
    fake = FakeClearML().start()
    yield fake
    fake.hang.clear()
    fake.stop()


@pytest.fixture
def work(tmp_path, server):
    """A workspace; nothing that it started survives the test."""
    found = Workspace(tmp_path / "work", server)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()
    found.kill_senders()


def test_a_run_is_reported_while_it_goes_on_and_whole_when_it_ends(work, server):
    process = work.start(holds=[30])
    wait_until(lambda: server.tasks and len(work.rows()) == 30, "rows arrive")
    (task,) = server.tasks.values()
    assert process.poll() is None and task["status"] == "in_progress"
    work.go(30)
    assert process.communicate(timeout=PATIENCE) == ("", "") and process.returncode == 0
    work.gone()  # it ended before the run did
    assert work.rows() == expected() and set(server.received.values()) == {1}
    artifacts = {"config.gin", "config.yaml", "metrics.json", "health.md"}  # its loss grows as the square of the step
    assert task["status"] == "completed" and set(task["artifacts"]) == artifacts
    asked = len(server.requests)
    assert "everything is sent" in work.ship() and len(server.requests) == asked


def test_without_a_server_nothing_is_imported_or_sent_and_everything_waits(work, server, tmp_path):
    for name in ("clearml", "requests", "wandb", "tensorboard"):
        (tmp_path / "traps" / name).mkdir(parents=True)
        (tmp_path / "traps" / name / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")
    reachable, work.server_settings = work.server_settings, {"CLEARML_API_HOST": server.url}  # an address alone is no account
    traps = f"{tmp_path / 'traps'}{os.pathsep}{ROOT}"
    for order, stage in enumerate(("prepare", "backbone", "warmup")):
        inputs = [f"outputs/{before}-a" for before in ("prepare", "backbone")[:order]]
        assert work.run(stage=stage, order=order, inputs=inputs, rows=30, PYTHONPATH=traps) == ""
    assert work.ship(expect=1, PYTHONPATH=traps).count("no server is configured") == 3
    assert not (tmp_path / "imported").exists() and not server.requests
    work.server_settings = reachable
    assert "everything is sent" in work.ship()
    tasks = server.by_stage()
    assert [task["name"] for task in server.tasks.values()] == ["prepare", "backbone", "warmup"]
    assert tasks["backbone"]["parent"] == tasks["prepare"]["id"] and tasks["warmup"]["parent"] == tasks["backbone"]["id"]
    assert all(work.rows(task) == expected(30) for task in server.tasks) and set(server.received.values()) == {1}
    asked = len(server.requests)
    work.ship()
    assert len(server.requests) == asked


def outputs(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


SLOW = [pytest.param(death, marks=pytest.mark.slow) for death in ("never answers", "hangs on its way")]


@pytest.mark.parametrize("death", ["refuses", *SLOW])
def test_a_dead_server_changes_nothing(work, server, death):
    work.run(SLOTLOOP_TRACKING="off")
    plain = outputs(work.folder / "outputs")
    work.track(patience=1.0)
    with socket.create_server(("127.0.0.1", 0)) as hole:
        elsewhere = {"CLEARML_API_HOST": f"http://127.0.0.1:{hole.getsockname()[1]}"} if death == "never answers" else {}
        server.hang |= {"events.add_batch"} if death == "hangs on its way" else set()
        if death == "refuses":
            server.stop()
        told = work.run(**elsewhere)
    assert outputs(work.folder / "outputs") == plain
    assert "tracking: not everything is sent" in told and len(told.splitlines()) == 1
    work.gone()
    assert "given up after 1 s" in work.log() and not server.received
    if death == "refuses":
        assert "not sent: ClearML's server does not answer" in work.ship(expect=1)
        server.start()
    server.hang.clear()
    work.track()  # with patience: on a busy machine a server takes its time
    work.ship()
    assert work.rows() == expected() and set(server.received.values()) == {1}


def test_a_run_does_not_wait_for_a_sender_that_waits_for_a_dead_server(work, server):
    server.stop()
    work.track(patience=LONG_AFTER)
    assert "nothing is lost" in work.run()
    assert work.senders()  # it goes on trying
    server.start()
    work.gone()
    assert work.rows() == expected()


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_misses_nothing(work, server):
    process = work.start(holds=[20, 40, 60])
    wait_until(lambda: server.tasks and len(work.rows()) == 20, "rows arrive")
    server.stop()
    work.go(20)
    wait_until(lambda: "does not answer" in work.log(), "the sender notices")
    server.start()
    work.go(40)
    wait_until(lambda: len(work.rows()) == 60, "rows arrive again")
    work.go(60)
    assert process.communicate(timeout=PATIENCE) == ("", "") and process.returncode == 0
    work.gone()
    assert work.rows() == expected() and next(iter(server.tasks.values()))["status"] == "completed"


@pytest.mark.slow
def test_a_batch_that_was_taken_without_an_answer_is_stored_once(work, server):
    server.swallow.add("events.add_batch")
    process = work.start(holds=[40])
    wait_until(lambda: server.received and not server.alive, "the server takes a batch and dies")
    server.start()
    work.go(40)
    process.communicate(timeout=PATIENCE)
    work.gone()
    assert work.rows() == expected() and len(server.tasks) == 1
    counts = {server.received[task, step, "loss", "loss"] for task in server.tasks for step in range(ROWS)}
    assert counts == {1, 2} or counts == {2}


@pytest.mark.slow
def test_a_sender_that_is_killed_leaves_the_rest_to_ship(work, server):
    process = work.start(holds=[40])
    wait_until(lambda: server.tasks and work.rows(), "rows arrive")
    work.kill_senders()
    work.gone()
    work.go(40)
    told, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and not error and "not everything is sent" in told
    assert 0 < len(work.rows()) < ROWS
    work.ship()
    assert work.rows() == expected() and set(server.received.values()) <= {1, 2} and len(server.tasks) == 1


def killed(work, server, *, with_sender=False):
    """A run that was killed after some rows had arrived; returns how many it had written."""
    process = work.start(holds=[42])
    wait_until(lambda: server.tasks and work.rows(), "rows arrive")
    if with_sender:
        work.kill_senders()
    process.kill()
    process.communicate()
    work.gone()
    work.go(42)
    return len((work.folder / "outputs/warmup-a/curves.csv").read_text().splitlines()) - 1


def test_a_run_that_is_killed_and_run_again_is_one_task(work, server):
    written = killed(work, server)
    (task,) = server.tasks.values()
    assert work.rows() == expected(written) and task["status"] == "stopped" and written < ROWS
    work.run()
    work.gone()
    assert len(work.records()) == 1 and len(server.tasks) == 1 and task["statuses"][-1] == "completed"
    assert work.rows() == expected() and set(server.received.values()) == {1, 2}


@pytest.mark.slow
def test_a_run_that_is_killed_with_its_sender_is_run_again_as_one_task(work, server):
    killed(work, server, with_sender=True)
    work.run()
    work.gone()
    (task,) = server.tasks.values()
    assert len(work.records()) == 1 and task["status"] == "completed"
    assert work.rows() == expected() and set(server.received.values()) <= {1, 2}


def test_a_run_that_is_killed_with_its_sender_and_never_run_again_is_sent_as_far_as_it_came(work, server):
    written = killed(work, server, with_sender=True)
    (task,) = server.tasks.values()
    assert task["status"] == "in_progress"
    assert "killed" in work.ship()
    assert work.rows() == expected(written) and task["status"] == "stopped" and set(server.received.values()) <= {1, 2}
    asked = len(server.requests)
    work.ship()
    assert len(server.requests) == asked


@pytest.mark.slow
def test_runs_at_the_same_time_and_two_who_ship_them(work, server):
    reachable, work.server_settings = work.server_settings, {}
    processes = [work.start(identity=name, stage=f"stage{name}", rows=60) for name in "abcd"]
    assert all(process.communicate(timeout=PATIENCE) == ("", "") and process.returncode == 0 for process in processes)
    work.gone()
    work.server_settings, server.delay = reachable, 0.02
    command = [sys.executable, "-m", "stages", "track", "--ship", "--config", "track.gin"]
    both = [work.popen(command), work.popen(command)]
    assert all("Traceback" not in text for process in both for text in process.communicate(timeout=PATIENCE))
    work.ship()
    assert len(server.tasks) == 4 and set(server.received.values()) == {1}
    assert all(work.rows(task) == expected(60) and server.tasks[task]["status"] == "completed" for task in server.tasks)


@pytest.mark.slow
def test_runs_at_the_same_time_are_followed_each_by_its_own_sender(work, server):
    processes = [work.start(identity=name, stage=f"stage{name}", rows=60) for name in "abc"]
    assert all(process.communicate(timeout=PATIENCE)[1] == "" and process.returncode == 0 for process in processes)
    work.gone()
    work.ship()
    assert len(server.tasks) == 3 and len(server.projects) == 1
    assert all(work.rows(task) == expected(60) for task in server.tasks) and set(server.received.values()) == {1}


MACHINE = """
import getpass, os, platform, socket
node = "hostname-marker"
socket.gethostname = socket.getfqdn = lambda *_: node
platform.node = lambda: node
getpass.getuser = lambda: "username-marker"
real = os.uname()
os.uname = lambda: type(real)((real.sysname, node, real.release, real.version, real.machine))
"""


def test_nothing_secret_leaves(work, server, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(MACHINE)
    git = {f"GIT_{role}_{field}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    for command in ("init -q -b trunk", "add run.py", "commit -q -m one"):
        subprocess.run(["git", *command.split()], cwd=work.folder, env={**work.environment, **git}, check=True)
    remote = "https://someone:token-marker@example.org/a/b.git?private_token=token-marker"
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=work.folder, env=work.environment, check=True)
    (work.folder / "run.py").write_text(RUN + "\n# diff-marker\n")
    home = tmp_path / "home-marker"
    home.mkdir()
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "environment-marker", "WANDB_API_KEY": "environment-marker", "HOME": str(home),
        "USER": "username-marker", "LOGNAME": "username-marker", "HOSTNAME": "hostname-marker",
        "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    process = work.start(rows=40, out=str(work.folder / "place/out"), **secrets)
    assert process.communicate(timeout=PATIENCE) == ("", "") and process.returncode == 0
    work.gone()
    (task,) = server.tasks.values()
    assert task["script"]["repository"] == "https://example.org/a/b.git" and len(task["script"]["version_num"]) == 40
    assert task["comment"] == "files differ from this revision"
    assert task["hyperparams"]["gin"]["warmup.run.out"]["value"] == "./place/out" and work.rows() == expected(40)
    sent = server.sent()
    assert b"warmup.run.out" in sent
    for marker in ("token", "diff", "environment", "username", "hostname", "home"):
        assert f"{marker}-marker".encode() not in sent, marker
    for secret in (KEY, SECRET, str(tmp_path), str(ROOT), str(work.folder)):
        assert secret.encode() not in sent, secret
    assert [path for path, head, _ in server.requests if b"Basic" in head] == ["/auth.login"]
    work.track(more="clearml.ClearML.host_name = True\n")
    shutil.rmtree(work.folder / ".tracking")
    process = work.start(identity="b", **secrets)
    assert process.communicate(timeout=PATIENCE) == ("", "")
    work.gone()
    assert b"hostname-marker" in server.sent() and b"username-marker" not in server.sent()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the packages do is not ours
def test_four_trackers_at_once_and_a_sender_that_dies(work, server):
    work.track(trackers="@clearml.ClearML(), @mlflow.MLflow(), @tensorboard.TensorBoard(), @wandb.WandB()")
    process = work.start(holds=[40])
    boards = work.folder / ".tracking/tensorboard"
    files = ".tracking/wandb/offline-run-*/*.wandb"
    wait_until(lambda: server.tasks and work.rows() and list(work.folder.glob(files)), "rows arrive")
    work.kill_senders()
    work.go(40)
    assert process.communicate(timeout=PATIENCE)[1] == "" and process.returncode == 0
    assert "everything is sent" in work.ship()
    assert work.rows() == expected() and set(server.received.values()) <= {1, 2}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (board,) = boards.iterdir()
    found = EventAccumulator(str(board), size_guidance={"scalars": 0})
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == list(expected().items())
    (run,) = work.folder.glob(".tracking/wandb/offline-run-*")
    from tests.pipeline.tracking.test_mlflow import history
    from tests.pipeline.tracking.test_mlflow import runs as mlflow_runs
    from tests.pipeline.tracking.test_wandb import points

    assert points(run, "loss") == list(expected().items())
    store = f"sqlite:///{work.folder}/.tracking/mlflow/mlflow.db"
    (run,) = mlflow_runs(store=store)
    assert history(run, "loss", store) == list(expected().items()) and run.info.status == "FINISHED"
    wait_until(lambda: not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(work.folder)], "its service ends")


def stage(work, name, *arguments, **environment):
    """A stage of the pipeline as DVC starts it."""
    settings = {"DVC_STAGE": name, "DVC_ROOT": str(work.folder), **environment}
    return work.popen([sys.executable, "-m", "stages", name, *arguments], **settings)


@pytest.fixture
def smoke(work):
    """The workspace of a smoke run, its settings resolved as configure leaves them."""
    workspace(work.folder, "smoke")
    process = work.popen([sys.executable, "-m", "stages", "configure"])
    assert process.communicate(timeout=PATIENCE)[1] == "" and (work.folder / "build/config/track.gin").is_file()
    return work


@pytest.mark.slow
def test_a_whole_pipeline_is_a_chain_of_tasks(smoke, server):
    for name in TRAINING:
        process = stage(smoke, name, "--config", f"build/config/{name}.gin", DVC_EXP_NAME="wide-lamp")
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
    smoke.gone()
    smoke.ship()
    tasks = server.by_stage()
    named = {task["id"]: name for name, task in tasks.items()}
    assert {name: named.get(task.get("parent"), "") for name, task in tasks.items()} == {
        "prepare": "", "backbone": "prepare", "extract": "backbone", "warmup": "extract", "joint": "warmup", "finetune": "joint",
        "controls": "joint", "evaluate": "finetune", "report": "evaluate",
    }  # fmt: skip
    assert len(server.projects) == 1 and {task["status"] for task in tasks.values()} == {"completed"}
    for name, task in tasks.items():
        assert {f"stage:{name}", "preset:smoke", "experiment:wide-lamp"} <= set(task["tags"])
        assert len([tag for tag in task["tags"] if tag.startswith("config:") and len(tag) == 19]) == 1
        assert task["script"]["entry_point"] == f"-m stages {name}"
        folder = smoke.folder / next(v["value"] for k, v in task["hyperparams"]["gin"].items() if k.endswith("run.out"))
        check_against_files(server, task, folder)
    assert tasks["warmup"]["hyperparams"]["gin"]["loop.fit.steps"]["value"] == "6"
    assert tasks["backbone"]["type"] == "training" and tasks["evaluate"]["type"] == "testing"
    assert set(server.received.values()) == {1}
    sent = server.sent()
    assert str(smoke.folder).encode() not in sent and str(ROOT).encode() not in sent


def check_against_files(server, task, folder):
    """Everything that a stage left is at the server: rows, numbers, pictures, pages, models by reference."""
    found = server.scalars(task["id"])
    for file in folder.rglob("curves.csv"):
        prefix = "/".join(file.relative_to(folder).parts[:-1])
        names, *lines = [line.split(",") for line in file.read_text().splitlines()]
        for column, name in enumerate(names[1:], start=1):
            plot, _, line = name.partition("/")
            key = "/".join(filter(None, (prefix, plot, line or plot)))
            assert found.get(key, {}) == {int(row[0]): float(row[column]) for row in lines}, key
    singles = {key.removeprefix("Summary/"): held[SINGLE] for key, held in found.items() if SINGLE in held}
    metrics = folder / "metrics.json"
    if metrics.is_file() and "steps" in (told := json.loads(metrics.read_text())):
        assert singles["steps"] == told["steps"]
    copied = {str(f.relative_to(folder)) for pattern in ("metrics.json", "*.md", "config.*") for f in folder.rglob(pattern)}
    assert copied <= set(task["artifacts"])
    prefix = f"slotloop/{task['name']}.{task['id']}/"
    assert all(server.files[prefix + name] == (folder / name).read_bytes() for name in copied)
    pictures = {str(file.relative_to(folder)) for file in folder.rglob("*.png")}
    events = [event for key, event in server.events.items() if key[0] == task["id"] and event["type"] == "training_debug_image"]
    shown = {event["variant"] + ".png" for event in events}
    assert pictures == shown and all(server.files[prefix + name] == (folder / name).read_bytes() for name in pictures)
    weights = {file for file in folder.rglob("model.safetensors")}
    assert {server.models[model]["uri"] for model in task["models"].values()} == {
        str(file.relative_to(folder.parent.parent)) for file in weights
    }
    assert not any(name.endswith("safetensors") for name in server.files)


LONG = ("loop.fit.steps=160", "loop.fit.save_every=1", "loop.fit.validate_every=7", "loop.fit.log_every=5")


@pytest.fixture
def trained(finished, work):
    """A workspace in which warmup can run."""
    workspace(work.folder, "smoke")
    shutil.copytree(finished / "data", work.folder / "data")
    return work


def warmup(work, **environment):
    shutil.rmtree(work.folder / "outputs", ignore_errors=True)
    process = stage(work, "warmup", *LONG, **environment)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return outputs(work.folder / "outputs/warmup"), out


@pytest.mark.slow
@pytest.mark.parametrize("death", ["refused", "hangs"])
def test_a_real_stage_leaves_the_same_bytes_whatever_the_server_does(trained, server, death):
    plain, _ = warmup(trained, SLOTLOOP_TRACKING="off")
    with socket.create_server(("127.0.0.1", 0)) as hole:
        address = {"CLEARML_API_HOST": f"http://127.0.0.1:{hole.getsockname()[1]}"} if death == "hangs" else {}
        server.stop()
        there, told = warmup(trained, **address)
        assert there == plain and "nothing is lost" in told
        trained.kill_senders()
    server.start()
    trained.ship()
    (task,) = server.tasks.values()
    check_against_files(server, task, trained.folder / "outputs/warmup")
    assert set(server.received.values()) == {1}


@pytest.mark.slow
def test_a_real_stage_that_is_killed_and_resumes_is_one_task(trained, server):
    expected_files, _ = warmup(trained, SLOTLOOP_TRACKING="off")
    shutil.rmtree(trained.folder / "outputs")
    for target in (10, 25):
        process = stage(trained, "warmup", *LONG)
        wait_until(lambda n=target, p=process: snapshot(trained.folder, "warmup") >= n or p.poll() is not None, "it trains")
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        trained.gone()
        (task,) = server.tasks.values()
        assert task["status"] == "stopped"
        shutil.rmtree(trained.folder / "outputs")  # as DVC does
    there, _ = warmup(trained)
    trained.gone()
    trained.ship()
    assert there == expected_files and len(trained.records()) == 1 and len(server.tasks) == 1
    check_against_files(server, task, trained.folder / "outputs/warmup")
    assert task["status"] == "completed"
