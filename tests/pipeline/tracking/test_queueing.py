"""A stage that is sent to a queue: from the command line to the server, and what an agent does with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tracking import queueing
from stages.__main__ import main
from tests.conftest import ROOT, workspace
from tests.support.dvc import dvc, environment
from tests.support.fake_clearml import FakeClearML

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pyparsing, as clearml's reader of its configuration uses it


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, env=environment(folder), check=True)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server with two queues that the environment points to."""
    fake = FakeClearML().start()
    fake.queues = {"q1": "default", "q2": "gpu"}
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("CLEARML_CONFIG_FILE", "http_proxy", "HTTP_PROXY", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield fake
    fake.stop()


@pytest.fixture
def pushed(monkeypatch, tmp_path):
    """A workspace whose commit the remote has."""
    folder = workspace(tmp_path / "run", "smoke")
    (folder / "requirements.lock").write_text("torch==2.13.0\n")
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    git(folder, "remote", "add", "origin", "git@example.org:a/b.git")
    git(folder, "update-ref", "refs/remotes/origin/trunk", "HEAD")
    monkeypatch.chdir(folder)
    return folder


def test_a_stage_goes_to_the_queue_that_is_named(server, pushed, capsys):
    assert main(["warmup", "--queue", "gpu"]) == 0
    (task,) = server.tasks.values()
    assert (task["queue"], task["status"], task["name"]) == ("q2", "queued", "warmup (queued)")
    script = task["script"]
    assert script["repository"] == "git@example.org:a/b.git" and script["requirements"] == {"pip": "torch==2.13.0\n"}
    said = capsys.readouterr().out
    assert said == f"warmup: queued in gpu as task {task['id']}, commit {script['version_num'][:12]} of git@example.org:a/b.git\n"
    assert not (pushed / "runs").exists() and not (pushed / ".tracking/warmup").exists()
    module = script["entry_point"].split()
    assert module == ["-m", "pipeline.tracking.queueing", "warmup"] and (ROOT / f"{module[1].replace('.', '/')}.py").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "params.yaml").write_text("preset: literal\ncommon: {}\n"), "1 files differ"),
        (lambda folder: git(folder, "remote", "remove", "origin"), "no remote 'origin'"),
    ],
)
def test_what_cannot_be_cloned_is_refused_in_a_line(server, pushed, capsys, change, message):
    change(pushed)
    assert main(["warmup", "--queue", "gpu"]) == 1
    told = capsys.readouterr()
    assert message in told.err and len(told.err.splitlines()) == 1 and not told.out and not server.tasks


def test_other_trackers_have_no_queues(server, pushed, capsys):
    (pushed / "params.yaml").write_text(
        'preset: smoke\ncommon: {}\ntrack: {bindings: {track: {run: {trackers: ["@tensorboard.TensorBoard()"]}}}}\n'
    )
    assert main(["warmup", "--queue", "gpu"]) == 1
    assert "--queue needs ClearML, which is not among track.run.trackers" in capsys.readouterr().err


def test_an_unknown_queue_is_refused_with_those_that_are_there(server, pushed, capsys):
    assert main(["warmup", "--queue", "cpu"]) == 1
    assert capsys.readouterr().err == "error: ClearML has no queue 'cpu'; it has: default, gpu\n"


PIPELINE = """stages:
  first:
    cmd: python -c "import sys; open('one', 'w').write(sys.executable)"
    outs: [one]
  warmup:
    cmd: python -c "open('two', 'w').write(open('one').read())"
    deps: [one]
    outs: [two]
  later:
    cmd: python -c "open('three', 'w').write('')"
    deps: [two]
    outs: [three]
"""


def agents(folder, expect=0):
    """Run a stage as an agent does: in a clone, by the interpreter's path, which PATH does not name."""
    own = Path(sys.executable).parent.resolve()
    path = os.pathsep.join(place for place in os.environ["PATH"].split(os.pathsep) if Path(place).resolve() != own)
    settings = environment(folder, PYTHONPATH=str(ROOT), PATH=path)
    done = subprocess.run([sys.executable, "-m", "pipeline.tracking.queueing", "warmup"], cwd=folder, env=settings, check=False)
    assert done.returncode == expect


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    dvc(folder, "config", "core.analytics", "false")
    (folder / "dvc.yaml").write_text(PIPELINE)
    return folder


def test_an_agent_makes_the_stage_and_what_it_needs_with_its_own_interpreter(clone):
    agents(clone)
    assert (clone / "two").read_text() == (clone / "one").read_text() and not (clone / "three").exists()
    assert Path((clone / "two").read_text()).samefile(sys.executable)


def test_a_stage_that_fails_fails_the_task(clone):
    (clone / "dvc.yaml").write_text(PIPELINE.replace("open('one').read()", "open('nothing').read()"))
    agents(clone, expect=255)


@pytest.mark.slow
def test_with_a_remote_an_agent_gives_its_results_back(clone, tmp_path):
    dvc(clone, "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "one")
    subprocess.run(["git", "clone", "-q", str(clone), str(tmp_path / "other")], check=True)
    agents(clone)
    other = tmp_path / "other"
    dvc(other, "fetch", "--run-cache")
    assert "is cached - skipping run" in dvc(other, "repro", "warmup")
    assert (other / "two").read_text() == (clone / "two").read_text()


@pytest.mark.parametrize(("failing", "status"), [("", 0), ("fetch", 0), ("repro", 1), ("push", 1)])
def test_with_a_remote_an_agent_fetches_before_and_pushes_after(monkeypatch, failing, status):
    calls = []

    def run(command, **_):
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, int(command[3] == failing), stdout=b"storage\n")

    monkeypatch.setattr(queueing.subprocess, "run", run)
    assert queueing.run("warmup") == status
    every = [["config", "core.remote"], ["fetch", "--run-cache", "warmup"], ["repro", "warmup"], ["push", "--run-cache"]]
    assert calls == (every[:3] if failing == "repro" else every)
