"""What MLflow keeps in its store, read by its own client: every row once, settings, pictures; no user, no host, no calls."""

import getpass
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import write_atomic, write_json
from pipeline.tracking import mlflow
from pipeline.tracking.delivery import Delivery, Unreachable
from pipeline.tracking.mlflow import MLflow
from pipeline.tracking.run_log import Record, RunInfo, TrackingError
from tests.conftest import ROOT
from tests.pipeline.tracking.test_tensorboard import curves, finished, gif, png
from tests.support.made_runs import write_run
from tests.support.memory_tracker import trap_sockets

pytestmark = pytest.mark.filterwarnings("ignore")  # what the package does is not ours
STORE = Path(".tracking/mlflow/mlflow.db")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A store without runs: to make one takes the package seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tables"))
        with MLflow()._connected() as made:
            assert made.get_experiment_by_name("slotloop") is None
        return STORE.read_bytes()


@pytest.fixture
def here(tmp_path, monkeypatch, tables):
    """A workspace whose user has no settings of the package."""
    monkeypatch.chdir(tmp_path)
    write_atomic(STORE, tables)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")] + ["DVC_ROOT"]:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def begun(stage="warmup", order=3, inputs=(), settings=None):
    out = Path("outputs") / stage
    record = Record(Path(".tracking") / f"{stage}-aaaa-1")
    record.folder.mkdir(parents=True)
    known = settings or {"loop.fit": {"steps": 5, "ema": 0.9}}
    record.begin(RunInfo(stage, order, "smoke", "a" * 64, "c" * 64, known, out, [Path(name) for name in inputs]))
    return record


def client(store=None):
    from mlflow import MlflowClient

    return MlflowClient(store or f"sqlite:///{STORE.resolve()}")


def runs(experiment="slotloop", store=None):
    found = client(store)
    return found.search_runs([found.get_experiment_by_name(experiment).experiment_id], order_by=["attributes.start_time"])


def history(run, key, store=None):
    """Values of a metric by the client that the makers give away, those that are there twice too."""
    return sorted((metric.step, metric.value) for metric in client(store).get_metric_history(run.info.run_id, key))


def artifacts(run):
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_every_row_settings_pictures_and_pages_are_there_once(here):
    record = begun()
    finished(record)
    Delivery(record, MLflow()).finish()
    (run,) = runs()
    assert history(run, "loss") == [(step, step * 0.5) for step in range(5)]
    assert history(run, "loss/step_0") == [(step, step * 0.25) for step in range(5)]
    assert history(run, "backbone/loss") == [(step, step * 0.5) for step in range(3)]
    assert history(run, "validation/loss") == [(2, 0.5)]
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("single/")} == {
        "single/steps": 5.0,
        "single/joint.nll": 0.25,
    }
    assert run.data.params == {"loop.fit.steps": "5", "loop.fit.ema": "0.9"}
    assert (run.info.status, run.info.run_name) == ("FINISHED", "warmup-aaaa-1")
    assert run.info.start_time == int(record.facts["began"] * 1000) and run.info.end_time >= run.info.start_time
    tags = run.data.tags
    assert (tags["stage"], tags["preset"], tags["config"], tags["status"]) == ("warmup", "smoke", "c" * 64, "completed")
    assert tags["models"] == f"outputs/warmup/model.safetensors, 7 bytes, sha256 {'d' * 64}"
    reported = [file for file in record.files.rglob("*") if file.is_file()]
    assert artifacts(run) == {file.relative_to(record.files).as_posix(): file.read_bytes() for file in reported}
    assert artifacts(run)["puzzles.png"] == png() and artifacts(run)["report.md"] == b"# Findings\n"


def test_a_picture_that_moves_is_sent_as_it_is(here):
    record = begun()
    finished(record)
    write_atomic(record.files / "refinement.gif", gif())
    Delivery(record, MLflow()).finish()
    assert artifacts(runs()[0])["refinement.gif"] == gif()


def test_a_child_is_nested_below_the_run_that_made_its_inputs(here):
    parent = begun("prepare", 0)
    write_atomic(Path("outputs/prepare/config.gin"), b"loop.fit.ema = 0.9\nloop.fit.steps = 5\n")
    parent.facts["written"] = ""
    write_json(parent.folder / "record.json", {**parent.facts, "written": sha(Path("outputs/prepare/config.gin"))})
    parent.finish("completed")
    child = begun("warmup", 3, ["outputs/prepare"])
    curves(child, 2)
    child.finish("completed")
    Delivery(child, MLflow()).finish()
    above, below = sorted(runs(), key=lambda run: run.info.run_name)
    assert below.data.tags["mlflow.parentRunId"] == above.info.run_id and "mlflow.parentRunId" not in above.data.tags


def sha(file):
    from pipeline.files import sha256

    return sha256(file)


@pytest.mark.parametrize("ill", [{}, {"confidence": 0.01}])
def test_what_is_wrong_with_a_training_describes_the_run(here, ill):
    record = begun()
    write_run(Path(record.facts["out"]), **ill)
    record.finish("completed")
    Delivery(record, MLflow()).finish()
    (run,) = runs()
    said = run.data.tags.get("mlflow.note.content", "")
    assert said.startswith("- warmup: confidence uniform") == bool(ill)
    assert artifacts(run).get("health.md", b"").decode() == said


@pytest.mark.parametrize(
    ("status", "shown"), [("completed", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED"), ("killed", "KILLED")]
)
def test_how_a_run_ended_is_its_status(here, status, shown):
    record = begun()
    curves(record, 2)
    if status == "killed":
        record.salvage()
    else:
        record.finish(status)
    Delivery(record, MLflow()).finish()
    (run,) = runs()
    assert (run.info.status, run.data.tags["status"]) == (shown, status)
    assert bool(artifacts(run)) == (status != "killed")


SHIP = """
from pathlib import Path
from pipeline.tracking.run_log import Record
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.mlflow import MLflow
Delivery(Record(Path(".tracking/warmup-aaaa-1")), MLflow()).finish()
"""
CI = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TRAVIS", "PYTEST_CURRENT_TEST")  # where the package is silent by itself


def test_nothing_of_the_machine_is_kept_and_nobody_is_called(here):
    trap_sockets(here / "site")
    record = begun()
    finished(record)
    environment = {name: value for name, value in os.environ.items() if name not in CI}
    environment |= {"PYTHONPATH": f"{here / 'site'}{os.pathsep}{ROOT}", "A_SECRET": "environment-marker", "LOGNAME": "user-marker"}
    subprocess.run([sys.executable, "-c", SHIP], env=environment, check=True, timeout=600)
    assert not (here / "called").exists(), (here / "called").read_text()
    assert not (here / "home").exists() and not (here / "mlruns").exists()
    (run,) = runs()
    assert set(run.data.tags) >= {"id", "record", "mlflow.runName"} and "mlflow.user" not in run.data.tags
    with sqlite3.connect(STORE) as connection:
        dump = [line for line in connection.iterdump() if line.startswith("INSERT")]
    placed = [line for line in dump if str(here) in line]  # the store's own address of its files, and nothing else
    assert {line.split('"')[1] for line in placed} <= {"experiments", "runs"} and len(dump) > 20
    for marker in (getpass.getuser(), "user-marker", socket.gethostname(), "environment-marker", sys.executable, "def test_"):
        cells = [line for line in dump if f"'{marker}'" in line or (len(marker) > 8 and marker in line.replace(str(here), ""))]
        assert not cells, cells


SEND = """
import time
from pathlib import Path
from pipeline.tracking.run_log import Record
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.mlflow import MLflow
delivery = Delivery(Record(Path(".tracking/warmup-aaaa-1")), MLflow())
delivery.advance(Path("outputs/warmup"))
print("delivered", flush=True)
time.sleep(600)
"""


def test_after_a_sender_was_killed_the_next_one_leaves_every_row_once(here):
    record = begun()
    curves(record, 300)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    sender = subprocess.Popen([sys.executable, "-c", SEND], stdout=subprocess.PIPE, env=environment)
    assert b"delivered" in sender.stdout.readline()
    sender.send_signal(signal.SIGKILL)
    sender.communicate()
    finished(record, 400)
    Delivery(record, MLflow()).finish()
    (run,) = runs()
    assert history(run, "loss") == [(step, step * 0.5) for step in range(400)] and run.info.status == "FINISHED"


def test_a_sender_that_was_killed_while_it_made_the_tables_is_done_without(here):
    STORE.replace(STORE.with_suffix(".part"))
    with sqlite3.connect(STORE.with_suffix(".part")) as connection:
        connection.execute("drop table metrics")
        connection.execute("update alembic_version set version_num = 'nothing'")
    record = begun()
    curves(record, 3)
    Delivery(record, MLflow()).advance(Path(record.facts["out"]))
    assert len(history(runs()[0], "loss")) == 3 and not STORE.with_suffix(".part").exists()


def test_a_sender_that_died_before_it_noted_the_run_leaves_no_second_one(here):
    record = begun()
    curves(record, 3)
    Delivery(record, MLflow()).advance(Path(record.facts["out"]))
    (record.folder / "sent/mlflow.json").unlink()
    finished(record)
    Delivery(record, MLflow()).finish()
    (run,) = runs()
    assert len(history(run, "loss")) == 5


def test_a_killed_run_that_goes_on_is_one_run(here):
    record = begun()
    curves(record, 3)
    record.salvage()
    tracker = MLflow()
    Delivery(record, tracker).finish()
    assert runs()[0].info.status == "KILLED"
    curves(record, 4)
    delivery = Delivery(record, tracker)
    delivery.advance(Path(record.facts["out"]))
    assert runs()[0].info.status == "RUNNING"
    finished(record)
    delivery.finish()
    (run,) = runs()
    assert len(history(run, "loss")) == 5 and run.info.status == "FINISHED"


def test_one_tracker_serves_many_records_in_the_experiment_that_is_named(here):
    tracker = MLflow(experiment="mine")
    for stage in ("warmup", "joint"):
        record = begun(stage)
        finished(record, 5 if stage == "warmup" else 7)
        Delivery(record, tracker).finish()
    assert sorted(len(history(run, "loss")) for run in runs("mine")) == [5, 7]


def test_values_that_are_not_finite_are_left_out(here):
    record = begun()
    out = Path(record.facts["out"])
    write_atomic(out / "curves.csv", b"step,loss\n0,nan\n1,inf\n2,1\n")
    write_json(out / "metrics.json", {"best_loss": float("inf")})
    record.finish("failed")
    Delivery(record, MLflow()).finish()
    (run,) = runs()
    assert history(run, "loss") == [(2, 1.0)] and set(run.data.metrics) == {"loss"}


def test_long_settings_and_names_with_signs_are_taken(here):
    record = begun(settings={"loop.fit": {"text": "x" * 7000, "many": "y"}, "a/b.c": {"d": "1"}})
    write_json(Path(record.facts["out"]) / "metrics.json", {"models": {"test 5 %": {"nll (all)": {"mean": 1.0}}}})
    record.finish("completed")
    Delivery(record, MLflow()).finish()
    (run,) = runs()
    assert {key: len(value) for key, value in run.data.params.items()} == {"loop.fit.text": 6000, "loop.fit.many": 1, "a/b.c.d": 1}
    assert run.data.metrics == {"single/test 5 _.nll _all_": 1.0}


def test_the_store_of_the_environment_or_of_the_settings_is_taken(here, tables, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/environment.db")
    STORE.replace("settings.db")
    write_atomic(Path("environment.db"), tables)
    for stage, tracker in (("warmup", MLflow()), ("joint", MLflow(uri=f"sqlite:///{here}/settings.db"))):
        record = begun(stage)
        finished(record)
        Delivery(record, tracker).finish()
    stores = [f"sqlite:///{here}/{name}.db" for name in ("environment", "settings")]
    assert [runs(store=store)[0].data.tags["stage"] for store in stores] == ["warmup", "joint"] and not STORE.exists()


def test_a_store_that_cannot_be_written_is_told_in_a_line(here):
    record = begun()
    curves(record, 2)
    STORE.unlink()
    STORE.parent.rmdir()
    STORE.parent.write_text("a file in the way")
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be written \(") as caught:
        Delivery(record, MLflow()).advance(Path(record.facts["out"]))
    assert "\n" not in str(caught.value)
    STORE.parent.unlink()
    STORE.parent.mkdir()
    STORE.write_text("no data base" * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be written \(file is not a database\)"):
        Delivery(record, MLflow()).advance(Path(record.facts["out"]))


def test_a_deleted_experiment_is_named(here):
    record = begun()
    curves(record, 2)
    Delivery(record, MLflow()).advance(Path(record.facts["out"]))
    client().delete_experiment(client().get_experiment_by_name("slotloop").experiment_id)
    other = begun("joint")
    with pytest.raises(TrackingError, match="experiment slotloop is deleted: restore it, or name another"):
        Delivery(other, MLflow()).created()


def test_a_server_that_is_not_there_is_unreachable_and_its_password_is_not_told(here):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://me:secret-marker@127.0.0.1:{server.getsockname()[1]}"
    record = begun()
    curves(record, 3)
    tracker = MLflow(uri=address)
    for _ in range(2):
        with pytest.raises(Unreachable, match=r"MLflow's server does not answer \(ConnectionError\)") as caught:
            Delivery(record, tracker).advance(Path(record.facts["out"]))
        assert "secret-marker" not in str(caught.value)


def test_a_server_that_hangs_is_unreachable(here, monkeypatch):
    monkeypatch.setitem(mlflow.DEFAULTS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as hole:
        record = begun()
        with pytest.raises(Unreachable, match="does not answer"):
            Delivery(record, MLflow(uri=f"http://127.0.0.1:{hole.getsockname()[1]}")).created()


def test_without_the_package_its_extra_is_named(here, monkeypatch):
    record = begun()
    with monkeypatch.context() as context:
        for package in ("mlflow", "sqlalchemy", "alembic"):
            for name in [name for name in sys.modules if name.partition(".")[0] == package]:
                context.delitem(sys.modules, name)
            context.setitem(sys.modules, package, None)
            with pytest.raises(TrackingError, match=r"pip install 'slotloop\[mlflow\]'"):
                Delivery(record, MLflow()).advance(Path(record.facts["out"]))
