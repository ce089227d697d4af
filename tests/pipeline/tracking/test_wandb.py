"""What Weights & Biases keeps in its folders: every row once, settings, pictures; nothing of the machine, no word to anybody."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from pipeline.files import write_atomic, write_json
from pipeline.tracking import wandb
from pipeline.tracking.delivery import Delivery, Unreachable
from pipeline.tracking.run_log import Record, RunInfo, TrackingError
from pipeline.tracking.wandb import WandB
from tests.conftest import ROOT
from tests.pipeline.tracking.test_tensorboard import curves, finished, gif
from tests.support.dvc import PATIENCE
from tests.support.made_runs import write_run
from tests.support.memory_tracker import trap_sockets

pytestmark = pytest.mark.filterwarnings("ignore")  # what the package does is not ours


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace whose user has no settings of the package; no process of the package stays behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["DVC_ROOT"]:
        monkeypatch.delenv(name, raising=False)
    before = set(psutil.Process().children(recursive=True))
    yield tmp_path
    import wandb as package

    package.teardown()
    assert not gone_or_left(set(psutil.Process().children(recursive=True)) - before)


def gone_or_left(children):
    return psutil.wait_procs(children, timeout=PATIENCE)[1]


def begun(stage="warmup"):
    out = Path("outputs") / stage
    record = Record(Path(".tracking") / f"{stage}-aaaa-1")
    record.folder.mkdir(parents=True)
    record.begin(RunInfo(stage, 3, "smoke", "a" * 64, "c" * 64, {"loop.fit": {"steps": 5, "ema": 0.9}}, out, []))
    return record


def kept(folder):
    """Records of a run's file, which is a log in blocks (leveldb's format)."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    (file,) = folder.glob("*.wandb")
    data, position, part = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = Message()
            message.ParseFromString(part)
            part = b""
            yield message


def runs():
    return sorted(Path(".tracking/wandb").glob("offline-run-*"))


def history(folder):
    rows = []
    for message in kept(folder):
        if message.WhichOneof("record_type") == "history":
            rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in message.history.item})
    return rows


def points(folder, key):
    step = "/".join([*key.split("/")[:-1], "step"]) if not key.startswith("loss") else "step"
    return [(row[step], row[key]) for row in history(folder) if key in row]


def test_every_row_settings_and_pictures_are_there_once(here):
    record = begun()
    finished(record)
    Delivery(record, WandB()).finish()
    (folder,) = runs()
    assert points(folder, "backbone/loss") == [(step, step * 0.5) for step in range(3)]
    assert points(folder, "loss") == [(step, step * 0.5) for step in range(5)] and len(points(folder, "loss/step_0")) == 5
    assert points(folder, "validation/loss/value") == [(2, 0.5)]
    assert [row["_step"] for row in history(folder)] == list(range(5 + 3 + 1 + 1))
    (picture,) = [row["puzzles/path"] for row in history(folder) if "puzzles/path" in row]
    assert (folder / "files" / picture).read_bytes()[:4] == b"\x89PNG"
    metrics = [message.metric for message in kept(folder) if message.WhichOneof("record_type") == "metric"]
    assert {metric.name: metric.step_metric for metric in metrics if metric.step_metric}["backbone/loss"] == "backbone/step"
    (run,) = [message.run for message in kept(folder) if message.WhichOneof("record_type") == "run"]
    assert run.run_id == record.facts["id"] and run.display_name == "warmup-aaaa-1" and run.project == "slotloop"
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["loop.fit.steps"] == "5" and settings["preset"] == "smoke" and settings["parent"] == ""
    assert [message.exit.exit_code for message in kept(folder) if message.WhichOneof("record_type") == "exit"] == [0]


def test_a_picture_that_moves_is_sent_as_it_is(here):
    record = begun()
    finished(record)
    write_atomic(record.files / "refinement.gif", gif())
    Delivery(record, WandB()).finish()
    (folder,) = runs()
    (row,) = [row for row in history(folder) if "refinement/path" in row]
    assert row["refinement/_type"] == "video-file" and (folder / "files" / row["refinement/path"]).read_bytes() == gif()


@pytest.mark.parametrize("ill", [{}, {"confidence": 0.01}])
def test_what_is_wrong_with_a_training_is_in_the_summary(here, ill):
    record = begun()
    write_run(Path(record.facts["out"]), **ill)
    finished(record)
    write_run(record.files, **ill)
    Delivery(record, WandB()).finish()
    said = [
        json.loads(item.value_json)
        for message in kept(runs()[0])
        if message.WhichOneof("record_type") == "summary"
        for item in message.summary.update
        if item.key == "health"
    ]
    assert [text.startswith("- warmup: confidence uniform") for text in said] == [True] * bool(ill)


SHIP = """
from pathlib import Path
from pipeline.tracking.run_log import Record
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.wandb import WandB
Delivery(Record(Path(".tracking/warmup-aaaa-1")), WandB()).finish()
"""


def test_nothing_of_the_machine_is_kept_and_nobody_is_called(here):
    trap_sockets(here / "site")
    record = begun()
    finished(record)
    environment = {**os.environ, "PYTHONPATH": f"{here / 'site'}{os.pathsep}{ROOT}", "A_SECRET": "environment-marker"}
    subprocess.run([sys.executable, "-c", SHIP], env=environment, check=True, timeout=PATIENCE)
    assert not (here / "called").exists(), (here / "called").read_text()
    (folder,) = runs()
    sent = b"".join(file.read_bytes() for file in [*folder.glob("*.wandb"), *folder.glob("files/**/*")] if file.is_file())
    markers = (str(here), "def test_", "requirements", sys.executable, "environment-marker")
    assert sent and not [name for name in markers if name.encode() in sent]
    (run,) = [message.run for message in kept(folder) if message.WhichOneof("record_type") == "run"]
    assert run.host == "" and not run.HasField("git")
    kinds = Counter(message.WhichOneof("record_type") for message in kept(folder))
    assert not {"stats", "environment", "output", "output_raw", "artifact"} & set(kinds)


SEND = """
import sys, time
from pathlib import Path
from pipeline.tracking.run_log import Record
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.wandb import WandB
from tests.support.made_runs import write_run
delivery = Delivery(Record(Path(".tracking/warmup-aaaa-1")), WandB())
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
    service = psutil.Process(sender.pid).children(recursive=True)
    sender.send_signal(signal.SIGKILL)
    sender.communicate()
    assert not gone_or_left(service)
    assert len(runs()) == 1
    finished(record, 400)
    time.sleep(1.0)  # the package names folders by the second
    Delivery(record, WandB()).finish()
    (folder,) = runs()
    assert points(folder, "loss") == [(step, step * 0.5) for step in range(400)]


def test_a_killed_run_that_goes_on_is_one_run(here):
    record = begun()
    curves(record, 3)
    record.salvage()
    tracker = WandB()
    Delivery(record, tracker).finish()
    time.sleep(1.0)
    finished(record)
    Delivery(record, tracker).finish()
    (folder,) = runs()
    assert len(points(folder, "loss")) == 5


def test_one_tracker_serves_many_records(here):
    tracker = WandB(project="mine")
    for stage in ("warmup", "joint"):
        record = begun(stage)
        finished(record, 5 if stage == "warmup" else 7)
        Delivery(record, tracker).finish()
    assert sorted(len(points(folder, "loss")) for folder in runs()) == [5, 7]


def test_values_that_are_not_finite_do_not_stop_it(here):
    record = begun()
    out = Path(record.facts["out"])
    write_atomic(out / "curves.csv", b"step,loss\n0,nan\n1,inf\n2,1\n")
    write_json(out / "metrics.json", {"best_loss": float("inf")})
    record.finish("failed")
    Delivery(record, WandB()).finish()
    (folder,) = runs()
    assert len(points(folder, "loss")) == 3


def test_online_needs_a_key(here, monkeypatch):
    assert WandB().missing() == "" and "wandb login" in WandB(mode="online").missing()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert WandB(mode="online").missing() == ""


def test_a_service_that_is_not_there_is_unreachable(here, monkeypatch):
    monkeypatch.setattr(wandb, "TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    record = begun()
    curves(record, 3)
    for _ in range(2):
        with pytest.raises(Unreachable, match="does not answer"):
            Delivery(record, wandb.WandB(mode="online")).advance(Path(record.facts["out"]))
    assert len(list(Path(".tracking/wandb").glob("run-*"))) <= 1


def test_without_the_package_its_extra_is_named(here, monkeypatch):
    record = begun()
    with monkeypatch.context() as context:
        for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
            context.delitem(sys.modules, name)
        context.setitem(sys.modules, "wandb", None)
        with pytest.raises(TrackingError, match=r"pip install 'slotloop\[wandb\]'"):
            Delivery(record, WandB()).advance(Path(record.facts["out"]))
