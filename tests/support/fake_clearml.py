"""A ClearML server on loopback: API and files, with the real one's rules where they matter here, and ways to misbehave.

What it takes from clearml-server (apiserver/): an event is stored by (task, iter, metric, variant) (bll/event/event_bll.py);
artifacts and models are taken of created tasks and, with ``force``, of running ones (bll/task/utils.py); a parent must exist.
"""

import base64
import itertools
import json
import os
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY, SECRET = "KEYKEYKEYKEYKEYKEYKE", "SECRETSECRETSECRETSECRETSECRETSECRET"
SINGLE = -(2**31)


class Refused(Exception):
    """The server answers with an error."""

    def __init__(self, told: str, status: int = 400) -> None:
        super().__init__(told)
        self.status = status


class FakeClearML:
    """What arrived stays when the server dies (``stop``) and comes back (``start``), as in a data base.

    Attributes:
        requests: (path, headers as sent, body) of everything that arrived.
        calls: how often each endpoint was called.
        events: the stored ones, by key.
        received: how often each was received.
        delay: seconds before each answer.
        refuse: endpoints that are answered with status 500.
        swallow: endpoints whose next request is obeyed, its connection broken without an answer and the server stopped.
        hang: endpoints that are never answered.
        live: requests that are answered before all others are dropped; -1 = all.
        alive: whether anybody listens.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes, bytes]] = []
        self.calls: Counter[str] = Counter()
        self.tasks: dict[str, dict[str, Any]] = {}
        self.projects: dict[str, str] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.queues: dict[str, str] = {}  # names by id
        self.events: dict[tuple[str, int, str, str], dict[str, Any]] = {}
        self.received: Counter[tuple[str, int, str, str]] = Counter()
        self.files: dict[str, bytes] = {}
        self.delay, self.live = 0.0, -1
        self.refuse, self.swallow, self.hang = set[str](), set[str](), set[str]()
        self._numbers = itertools.count(1)
        self._port, self._server, self.alive = 0, None, False
        self._connections: set[socket.socket] = set()
        self._mutex = threading.Lock()

    def start(self) -> "FakeClearML":
        """Listen, at the same port as before."""
        outer = self

        class Handler(_Handler):
            server_of = outer

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.alive = True
        return self

    def stop(self) -> None:
        """Die: nobody listens any more and open connections break."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(self._connections):
            with _ignored():
                connection.shutdown(socket.SHUT_RDWR)
        self.alive = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """What points the SDK here."""
        hosts = {f"CLEARML_{name}_HOST": self.url for name in ("API", "WEB", "FILES")}
        return {**hosts, "CLEARML_API_ACCESS_KEY": KEY, "CLEARML_API_SECRET_KEY": SECRET}

    def by_stage(self) -> dict[str, dict[str, Any]]:
        """The tasks by name; each stage must have run once."""
        assert len({task["name"] for task in self.tasks.values()}) == len(self.tasks)
        return {task["name"]: task for task in self.tasks.values()}

    def scalars(self, task: str) -> dict[str, dict[int, float]]:
        """Stored scalars of a task: ``metric/variant`` -> iteration -> value."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for (of, iteration, metric, variant), event in self.events.items():
            if of == task and event["type"] == "training_stats_scalar":
                found[f"{metric}/{variant}"][iteration] = event["value"]
        return dict(found)

    def sent(self) -> bytes:
        """Every byte of every request but the login's credentials."""
        return b"\n".join(
            path.encode() + re.sub(rb"(?i)authorization: Basic \S+", b"", head) + body for path, head, body in self.requests
        )

    def answer(self, endpoint: str, head: bytes, body: bytes) -> dict[str, Any]:
        """Obey one call."""
        authorization = re.search(rb"(?i)authorization: (\w+) (\S+)", head)
        if endpoint == "auth.login":
            expected = base64.b64encode(f"{KEY}:{SECRET}".encode())
            if authorization is None or authorization[2] != expected:
                raise Refused("invalid credentials", 401)
            return {"token": _token()}
        if authorization is None or authorization[1] != b"Bearer":
            raise Refused("no token")
        if endpoint == "events.add_batch":
            return self._add([json.loads(line) for line in body.splitlines()])
        return getattr(self, "_" + endpoint.replace(".", "_"))(**json.loads(body))

    def _add(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        errors = 0
        for event in events:
            if event.get("task") not in self.tasks or event.get("type") not in ("training_stats_scalar", "training_debug_image"):
                errors += 1
                continue
            key = (event["task"], event["iter"], event["metric"], event["variant"])
            self.events[key] = event
            self.received[key] += 1
        return {"added": len(events) - errors, "errors": errors, "errors_info": {}}

    def _projects_get_all(self, name: str, only_fields: list[str]) -> dict[str, Any]:
        return {"projects": [{"id": i, "name": known} for i, known in self.projects.items() if re.search(name, known)]}

    def _projects_create(self, name: str, description: str) -> dict[str, Any]:
        self.projects[identity := f"project{next(self._numbers)}"] = name
        return {"id": identity}

    def _tasks_get_all(self, tags: list[str], only_fields: list[str]) -> dict[str, Any]:
        return {"tasks": [task for task in self.tasks.values() if set(tags) & set(task["tags"])]}

    def _tasks_get_by_id(self, task: str) -> dict[str, Any]:
        return {"task": self._task(task)}

    def _tasks_create(self, name: str, type: str, project: str, **given: Any) -> dict[str, Any]:
        if project not in self.projects or ("parent" in given and given["parent"] not in self.tasks):
            raise Refused("invalid parent or project")
        identity = f"{next(self._numbers):032x}"
        fresh = {"status": "created", "statuses": [], "artifacts": {}, "models": {}}
        self.tasks[identity] = {"id": identity, "name": name, "type": type, "project": project, **given, **fresh}
        return {"id": identity}

    def _queues_get_all(self, only_fields: list[str]) -> dict[str, Any]:
        return {"queues": [{"id": i, "name": name} for i, name in self.queues.items()]}

    def _tasks_enqueue(self, task: str, queue: str) -> dict[str, Any]:
        script = self._task(task).get("script", {})
        if queue not in self.queues or not script.get("repository") or not script.get("entry_point"):
            raise Refused("invalid queue, or the task has no repository or entry point")
        self._task(task)["queue"] = queue
        return {"queued": 1, **self._change(task, "queued", False, ("created",))}

    def _tasks_started(self, task: str, force: bool = False) -> dict[str, Any]:
        return self._change(task, "in_progress", force, ("created", "stopped"))

    def _tasks_completed(self, task: str, status_reason: str = "", force: bool = False) -> dict[str, Any]:
        return self._change(task, "completed", force, ("in_progress", "stopped"))

    def _tasks_failed(self, task: str, status_reason: str = "", force: bool = False) -> dict[str, Any]:
        return self._change(task, "failed", force, ("in_progress", "stopped"))

    def _tasks_stopped(self, task: str, status_reason: str = "", force: bool = False) -> dict[str, Any]:
        return self._change(task, "stopped", force, ("in_progress",))

    def _tasks_add_or_update_artifacts(self, task: str, artifacts: list[dict[str, Any]], force: bool = False) -> dict[str, Any]:
        self._updatable(task, force)["artifacts"] |= {artifact["key"]: artifact for artifact in artifacts}
        return {"updated": 1}

    def _tasks_add_or_update_model(self, task: str, name: str, model: str, type: str) -> dict[str, Any]:
        if model not in self.models:
            raise Refused("invalid model")
        self._updatable(task, True)["models"][name] = model
        return {"updated": 1}

    def _models_get_all(self, task: list[str], only_fields: list[str]) -> dict[str, Any]:
        return {"models": [model for model in self.models.values() if model["task"] in task]}

    def _models_create(self, **given: Any) -> dict[str, Any]:
        identity = f"model{next(self._numbers)}"
        self.models[identity] = {"id": identity, **given}
        return {"id": identity, "created": True}

    def _task(self, task: str) -> dict[str, Any]:
        if task not in self.tasks:
            raise Refused("invalid task id")
        return self.tasks[task]

    def _updatable(self, task: str, force: bool) -> dict[str, Any]:
        found = self._task(task)
        if found["status"] not in ("created", *(["in_progress"] if force else [])):
            raise Refused(f"invalid task status {found['status']}")
        return found

    def _change(self, task: str, status: str, force: bool, before: tuple[str, ...]) -> dict[str, Any]:
        found = self._task(task)
        if not force and found["status"] not in (status, *before):
            raise Refused("invalid status change")
        found["statuses"].append(status)
        found["status"] = status
        return {"updated": 1, "fields": {}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # an answer leaves in one piece
    server_of: FakeClearML

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server_of._connections.add(self.connection)

    def finish(self) -> None:
        self.server_of._connections.discard(self.connection)
        with _ignored():
            super().finish()

    def handle(self) -> None:
        with _ignored():
            super().handle()

    def do_POST(self) -> None:
        fake = self.server_of
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        head = "\n".join(f"{name}: {value}" for name, value in self.headers.items()).encode()
        endpoint = self.path.strip("/")
        with fake._mutex:
            fake.requests.append((self.path, head, body))
            fake.calls[endpoint or "upload"] += 1
            fake.live -= fake.live > 0
        time.sleep(fake.delay)
        if endpoint in fake.hang:
            while endpoint in fake.hang:
                time.sleep(0.05)
            return self._break()
        if fake.live == 0:
            return self._break()
        status, told = 200, "OK"
        data: Any = {}
        with fake._mutex:
            try:
                data = self._upload(body) if not endpoint else fake.answer(endpoint, head, body)
            except Refused as error:
                status, told = error.status, str(error)
        if endpoint in fake.refuse:
            status, told = 500, "out of order"
        if endpoint in fake.swallow:
            fake.swallow.discard(endpoint)
            fake.stop()
            return self._break()
        content = json.dumps({"meta": {"result_msg": told}, "data": data} if endpoint else data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def _break(self) -> None:
        self.close_connection = True
        with _ignored():
            self.connection.shutdown(socket.SHUT_RDWR)

    def _upload(self, body: bytes) -> list[str]:
        """A form with one file, as the files server takes it."""
        boundary = re.search(r"boundary=(\S+)", self.headers["Content-Type"])
        assert boundary is not None
        if "Bearer" not in self.headers.get("Authorization", ""):
            raise Refused("no token")
        part = body.split(b"--" + boundary[1].encode())[1]
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        assert name is not None
        self.server_of.files[name[1].decode()] = content.removesuffix(b"\r\n")
        return [name[1].decode()]


class _ignored:
    """Connections break here on purpose."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, OSError | ValueError)


def _token() -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {"exp": int(time.time()) + 86400, "api_version": "2.30", "server_version": "2.0.0", "feature_set": "basic"}
    return ".".join([part({"alg": "HS256", "typ": "JWT"}), part(claims), "c2ln"])


def without_clearml(environment: dict[str, str], home: str) -> dict[str, str]:
    """An environment in which no server is configured."""
    kept = {name: value for name, value in environment.items() if not name.startswith(("CLEARML_", "TRAINS_", "WANDB_"))}
    return {**kept, "HOME": home, "no_proxy": "*", **({} if os.name != "nt" else {"USERPROFILE": home})}
