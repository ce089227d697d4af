"""What ClearML is sent: requests that its SDK's schemas accept, taken by a server with its rules; nothing twice; no waiting."""

import json
import math
import socket
import sys
import threading

import jsonschema
import pytest

from pipeline.files import write_atomic, write_json
from pipeline.tracking import clearml
from pipeline.tracking.clearml import ClearML
from pipeline.tracking.delivery import Unreachable
from pipeline.tracking.run_log import TrackingError
from tests.support.dvc import PATIENCE
from tests.support.fake_clearml import KEY, SECRET, SINGLE, FakeClearML, Refused

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pyparsing, as clearml's reader of its configuration uses it

FACTS = {
    "id": "0123abcd", "record": "warmup-aaaa-1", "stage": "warmup", "config": "c" * 64, "preset": "smoke",
    "experiment": "wide-lamp", "settings": {"loop.fit.steps": "5", "warmup.run.unfreeze": "['refiner']"}, "changed": True,
    "repository": "https://example.org/a/b.git", "branch": "trunk", "revision": "e" * 40,
}  # fmt: skip
MODELS = [{"path": f"outputs/controls/{name}/model.safetensors", "sha256": name * 8, "bytes": 9} for name in ("backbone", "warmup")]
END = {**FACTS, "status": "completed", "models": MODELS}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A living server that the environment points to."""
    fake = FakeClearML().start()
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("CLEARML_CONFIG_FILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(clearml, "TIMEOUT", PATIENCE)  # where it does answer
    yield fake
    fake.stop()


@pytest.fixture
def files(tmp_path):
    """What a record keeps of a run that trains twice, evaluates and draws."""
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    folder = tmp_path / "files"
    write_atomic(folder / "config.gin", b"warmup.run.out = 'outputs/warmup'\n")
    write_json(folder / "metrics.json", {
        "headline": "test", "steps": 3, "best_loss": math.inf, "validation": [{"step": 2, "loss": 0.25, "loss_by_step": [0.25]}],
        "models": {"joint": {
            "nll": interval, "nll_by_step": [interval, {**interval, "mean": 0.25}], "statistics_by_step": [{"gate/a": 0.75}],
        }},
    })  # fmt: skip
    for name in ("backbone", "warmup"):
        write_json(folder / name / "metrics.json", {"steps": len(name)})
    write_atomic(folder / "report.md", b"# Findings\n")
    write_atomic(folder / "puzzles.png", b"\x89PNG...")
    return folder


ROWS = [(step, {"loss": 1.0 / (step + 1), "loss/step_0": 2.0, "lr": 1e-3}) for step in range(300)]


def report(files, tracker=None, facts=FACTS, end=END, parent=""):
    tracker = tracker or ClearML()
    run = tracker.create(facts, parent)
    tracker.begin(run, facts)
    tracker.scalars("", ROWS)
    tracker.scalars("backbone", ROWS[:3])
    tracker.end(end, files)
    return run


def test_a_run_becomes_a_task(server, files):
    run = report(files)
    task = server.tasks[run]
    assert task["name"] == "warmup" and task["type"] == "training" and server.projects[task["project"]] == "slotloop"
    assert set(task["tags"]) == {"record:0123abcd", "stage:warmup", "config:cccccccccccc", "preset:smoke", "experiment:wide-lamp"}
    assert {key: held["value"] for key, held in task["hyperparams"]["gin"].items()} == FACTS["settings"]
    assert task["script"] == {
        "repository": "https://example.org/a/b.git", "branch": "trunk", "version_num": "e" * 40,
        "entry_point": "-m stages warmup", "working_dir": ".",
    }  # fmt: skip
    assert task["statuses"] == ["in_progress", "completed"] and "parent" not in task
    found = server.scalars(run)
    assert found["loss/loss"] == {step: values["loss"] for step, values in ROWS} and len(found["loss/step_0"]) == 300
    assert found["backbone/loss/step_0"] == {0: 2.0, 1: 2.0, 2: 2.0} and found["lr/lr"][299] == 1e-3
    assert found["validation/loss"] == {2: 0.25} and found["nll_by_step/joint"] == {0: 0.5, 1: 0.25}
    assert found["gate_a_by_step/joint"] == {0: 0.75}
    singles = {key: held[SINGLE] for key, held in found.items() if SINGLE in held}
    assert singles == {"Summary/steps": 3, "Summary/joint.nll": 0.5, "Summary/backbone/steps": 8, "Summary/warmup/steps": 6}
    assert set(server.received.values()) == {1}


def test_files_are_uploaded_and_weights_are_not(server, files):
    run = report(files)
    task, prefix = server.tasks[run], f"slotloop/warmup.{run}/"
    names = {"config.gin", "metrics.json", "backbone/metrics.json", "warmup/metrics.json", "report.md"}
    assert set(task["artifacts"]) == names
    assert server.files == {prefix + name: (files / name).read_bytes() for name in (*names, "puzzles.png")}
    assert all(held["uri"] == f"{server.url}/{prefix}{key}" for key, held in task["artifacts"].items())
    assert task["artifacts"]["report.md"]["type_data"]["preview"] == "# Findings\n"
    picture = server.events[run, 0, "warmup", "puzzles"]
    assert picture["type"] == "training_debug_image" and picture["url"] == f"{server.url}/{prefix}puzzles.png"
    assert {name: server.models[model]["uri"] for name, model in task["models"].items()} == {m["path"]: m["path"] for m in MODELS}
    assert (
        f"sha256 {MODELS[0]['sha256']}, 9 bytes, revision {'e' * 40}" in server.models[task["models"][MODELS[0]["path"]]]["comment"]
    )


def test_a_picture_that_moves_is_uploaded_as_it_is(server, files):
    write_atomic(files / "refinement.gif", b"GIF89a...")
    run = report(files)
    assert server.files[f"slotloop/warmup.{run}/refinement.gif"] == b"GIF89a..."
    assert server.events[run, 0, "warmup", "refinement"]["url"] == f"{server.url}/slotloop/warmup.{run}/refinement.gif"


def test_every_request_fits_the_schema_of_the_sdk(server, files):
    from clearml.backend_api.services.v2_23 import events, models, projects, queues, tasks

    parent = report(files)
    report(files, facts={**FACTS, "id": "other"}, parent=parent)
    enqueued(server)
    services = {"events": events, "models": models, "projects": projects, "queues": queues, "tasks": tasks}
    checked = set()
    for path, _, body in server.requests:
        service, _, action = path.strip("/").partition(".")
        if not action or service == "auth":
            continue
        if path == "/events.add_batch":
            for line in body.splitlines()[:20]:
                event = json.loads(line)
                of = {"training_stats_scalar": "MetricsScalarEvent", "training_debug_image": "MetricsImageEvent"}[event["type"]]
                fits(event, getattr(events, of)._schema)
        else:
            name = "".join(word.capitalize() for word in action.split("_")) + "Request"
            fits(json.loads(body), getattr(services[service], name)._schema)
        checked.add(path)
    assert checked == {
        "/tasks.get_all", "/projects.get_all", "/projects.create", "/tasks.create", "/tasks.started", "/events.add_batch",
        "/tasks.add_or_update_artifacts", "/models.get_all", "/models.create", "/tasks.add_or_update_model", "/tasks.completed",
        "/queues.get_all", "/tasks.enqueue",
    }  # fmt: skip


def fits(body, schema):
    """Required fields, names and types; a field of which the SDK does not know is a mistake too."""
    jsonschema.validate(body, schema)
    assert set(body) <= set(schema["properties"]), set(body) - set(schema["properties"])


@pytest.mark.parametrize(
    ("status", "told"), [("completed", "completed"), ("failed", "failed"), ("stopped", "stopped"), ("killed", "stopped")]
)
def test_how_a_run_ended_is_the_status_of_its_task(server, files, status, told):
    run = report(files, end={**END, "status": status})
    assert server.tasks[run]["status"] == told
    assert bool(server.tasks[run]["artifacts"]) == (status != "killed")


def test_sent_again_by_another_sender_nothing_is_there_twice(server, files):
    runs = {report(files), report(files, ClearML())}
    assert len(runs) == 1 == len(server.tasks) and len(server.projects) == 1 and len(server.models) == 2
    assert set(server.received.values()) == {2} and len(server.scalars(*runs)["loss/loss"]) == 300
    assert server.tasks[runs.pop()]["status"] == "completed"


def test_a_killed_run_that_goes_on_is_the_same_task(server, files):
    first = report(files, end={**END, "status": "killed"})
    second = report(files, ClearML())
    assert first == second and server.tasks[first]["statuses"] == ["in_progress", "stopped", "in_progress", "completed"]


def test_a_child_names_its_parent(server, files):
    parent = report(files)
    child = report(files, facts={**FACTS, "id": "other", "stage": "joint"}, parent=parent)
    assert server.tasks[child]["parent"] == parent


SOURCE = {"repository": "https://example.org/a/b.git", "branch": "trunk", "revision": "e" * 40}


def enqueued(server, queue="gpu", requirements="torch==2.13.0\n"):
    server.queues = {"q1": "default", "q2": "gpu"}
    return ClearML().enqueue("warmup", queue, SOURCE, "-m a.module warmup", requirements)


def test_a_stage_is_queued_with_what_an_agent_needs(server):
    task = server.tasks[enqueued(server)]
    assert task["name"] == "warmup (queued)" and set(task["tags"]) == {"queued", "stage:warmup"}
    assert task["statuses"] == ["queued"] and task["queue"] == "q2" and server.projects[task["project"]] == "slotloop"
    assert task["script"] == {
        "repository": "https://example.org/a/b.git", "branch": "trunk", "version_num": "e" * 40, "binary": "python",
        "entry_point": "-m a.module warmup", "working_dir": ".", "requirements": {"pip": "torch==2.13.0\n"},
    }  # fmt: skip
    assert "requirements" not in server.tasks[enqueued(server, requirements="")]["script"]


def test_a_queue_that_is_not_there_is_refused_with_those_that_are(server):
    with pytest.raises(TrackingError, match=r"no queue 'a'; it has: none"):
        ClearML().enqueue("warmup", "a", SOURCE, "-m a.module warmup", "")
    with pytest.raises(TrackingError, match=r"ClearML has no queue 'cpu'; it has: default, gpu"):
        enqueued(server, "cpu")
    assert not server.tasks


def test_nothing_is_queued_without_a_server(monkeypatch, tmp_path):
    for name in ("API_ACCESS_KEY", "API_SECRET_KEY", "CONFIG_FILE", "AUTH_TOKEN"):
        monkeypatch.delenv(f"CLEARML_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TrackingError, match="ClearML: no server is configured"):
        ClearML().enqueue("warmup", "gpu", SOURCE, "-m a.module warmup", "")


def test_values_that_are_not_finite_are_left_out(server):
    tracker = ClearML()
    tracker.begin(run := tracker.create(FACTS, ""), FACTS)
    tracker.scalars("", [(0, {"loss": math.nan, "lr": 1.0}), (1, {"loss": math.inf}), (2, {"loss": 3.0})])
    assert server.scalars(run) == {"lr/lr": {0: 1.0}, "loss/loss": {2: 3.0}}


def test_the_project_is_found_by_its_exact_name(server, files):
    server._projects_create("other/a+b (c)", "")
    server._projects_create("a+b (c)", "")
    run = report(files, ClearML(project="a+b (c)"))
    assert server.projects[server.tasks[run]["project"]] == "a+b (c)" and len(server.projects) == 2
    url = next(iter(server.tasks[run]["artifacts"].values()))["uri"]
    assert f"/a%2Bb%20%28c%29/warmup.{run}/" in url


def test_the_host_is_named_only_where_that_is_asked_for(server, files, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "the-host-of-somebody")
    report(files, ClearML())
    assert b"the-host-of-somebody" not in server.sent() and b"X-ClearML-Worker: slotloop" in server.sent()
    run = report(files, ClearML(host_name=True), facts={**FACTS, "id": "other"})
    assert server.tasks[run]["runtime"] == {"hostname": "the-host-of-somebody"}
    assert b"X-ClearML-Worker: the-host-of-somebody" in server.sent()


def test_key_and_secret_appear_at_the_login_alone(server, files):
    report(files)
    assert KEY.encode() not in server.sent() and SECRET.encode() not in server.sent()
    assert [path for path, head, _ in server.requests if b"Basic" in head] == ["/auth.login"]


def test_a_server_that_refuses_is_quoted(server, files):
    server.refuse = {"tasks.create"}
    with pytest.raises(TrackingError, match=r"refused tasks.create: status 500 out of order"):
        report(files)
    tracker = ClearML()
    with pytest.raises(TrackingError, match=r"refused tasks.started: status 400 invalid task id"):
        tracker.begin("nothing", FACTS)
    tracker._task = "nothing"
    with pytest.raises(TrackingError, match="refused 3 events"):
        tracker.scalars("", ROWS[:1])


def test_wrong_keys_are_told_as_such(server, files, monkeypatch):
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", "another")
    with pytest.raises(TrackingError, match="invalid credentials") as caught:
        report(files)
    assert not isinstance(caught.value, Unreachable) and "another" not in str(caught.value)


def test_a_session_that_has_lapsed_is_renewed(server, files, monkeypatch):
    tracker = ClearML()
    tracker.begin(tracker.create(FACTS, ""), FACTS)

    def lapsed(**_):
        raise Refused("token expired", 401)

    with monkeypatch.context() as context:
        context.setattr(server, "_tasks_started", lapsed)
        with pytest.raises(TrackingError, match="status 401 token expired"):
            tracker.begin(tracker.create(FACTS, ""), FACTS)
    report(files, tracker)
    assert server.calls["auth.login"] == 2


def test_a_server_that_is_gone_is_unreachable_at_once_and_found_again(server, files):
    tracker = ClearML()
    server.stop()
    with pytest.raises(Unreachable):
        report(files, tracker)
    server.start()
    tracker.begin(run := tracker.create(FACTS, ""), FACTS)
    server.stop()
    with pytest.raises(Unreachable):
        tracker.scalars("", ROWS[:1])
    server.start()
    tracker.scalars("", ROWS[:1])
    assert server.received[run, 0, "loss", "loss"] == 1


@pytest.mark.parametrize("listening", [True, False], ids=["accepts", "does not accept"])
def test_a_server_that_never_answers_is_unreachable(monkeypatch, server, files, listening):
    monkeypatch.setattr(clearml, "TIMEOUT", 0.1)
    server.hang = {"auth.login"}
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(1)
        if not listening:
            monkeypatch.setenv("CLEARML_API_HOST", f"http://127.0.0.1:{hole.getsockname()[1]}")
        with pytest.raises(Unreachable, match="does not answer"):
            report(files)


def test_a_server_that_hangs_later_is_unreachable(monkeypatch, server, files):
    server.hang = {"events.add_batch"}
    tracker = ClearML()
    tracker.begin(run := tracker.create(FACTS, ""), FACTS)
    with monkeypatch.context() as context:
        context.setattr(clearml, "TIMEOUT", 0.1)
        for _ in range(3):  # one request waits, however often we try
            with pytest.raises(Unreachable, match="Timeout"):
                tracker.scalars("", ROWS[:1])
    server.hang.clear()
    tracker.scalars("", ROWS[1:2])
    assert set(server.scalars(run)["loss/loss"]) <= {0, 1} and server.calls["events.add_batch"] <= 2


def test_rows_that_are_refused_are_an_error_and_not_lost_in_silence(server):
    tracker = ClearML()
    tracker.begin(run := tracker.create(FACTS, ""), FACTS)
    server.refuse = {"events.add_batch"}
    with pytest.raises(TrackingError, match=r"refused events.add_batch: status 500"):
        tracker.scalars("", ROWS[:1])
    server.refuse = set()
    tracker.scalars("", ROWS[:1])
    assert server.scalars(run)["loss/loss"] == {0: 1.0}


def test_a_batch_that_was_taken_without_an_answer_is_stored_once(server, files):
    server.swallow = {"events.add_batch"}
    tracker = ClearML()
    tracker.begin(run := tracker.create(FACTS, ""), FACTS)
    with pytest.raises(Unreachable):
        tracker.scalars("", ROWS[:5])
    server.start()
    tracker.scalars("", ROWS[:5])
    assert {server.received[run, step, "loss", "loss"] for step in range(5)} == {2}
    assert len(server.scalars(run)["loss/loss"]) == 5


def test_connections_that_break_after_some_requests_are_unreachable(server, files):
    server.live = 5
    with pytest.raises(Unreachable):
        report(files)
    server.live = -1
    run = report(files)
    assert len(server.tasks) == 1 and server.tasks[run]["status"] == "completed"


def test_what_is_not_clearml_is_told_as_such(monkeypatch, server, files):
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\n<p/>"
    with socket.create_server(("127.0.0.1", 0)) as page:

        def serve():
            connection, _ = page.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv("CLEARML_API_HOST", f"http://127.0.0.1:{page.getsockname()[1]}")
        with pytest.raises(TrackingError):
            report(files)
        thread.join()


def test_without_a_configuration_there_is_no_server(monkeypatch, tmp_path):
    for name in ("API_ACCESS_KEY", "API_SECRET_KEY", "CONFIG_FILE", "AUTH_TOKEN"):
        monkeypatch.delenv(f"CLEARML_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "clearml-init" in ClearML().missing()
    (tmp_path / "clearml.conf").touch()
    assert ClearML().missing() == ""


def test_without_the_package_its_extra_is_named(server, files, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "clearml"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "clearml", None)
    with pytest.raises(TrackingError, match=r"pip install 'slotloop\[clearml\]'"):
        report(files)
