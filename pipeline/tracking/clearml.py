"""ClearML, through the session of its SDK: every call returns when it has arrived or fails within seconds.

The SDK's ``Task`` and ``Logger`` are not used, not even in the sender's process: rows that a server refuses are lost in silence
(``report_scalar`` and ``flush`` return as if all were well), where it hangs ``flush`` does not return, and ``Task.create`` sends
"user@host" in a comment (seen with 2.1.12). Scalars that are sent twice are stored once: the server's key of an event is (task,
iteration, metric, variant). Source: clearml-server, apiserver/bll/event/event_bll.py, ``event_id_fields``. Artifacts and models are
taken of running tasks only (bll/task/utils.py, ``get_task_for_update``), so a task that is reported to again is started again.
"""

import json
import math
import mimetypes
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.tracking import reported, values
from pipeline.tracking.delivery import Row, Unreachable
from pipeline.tracking.run_log import TrackingError, lock, root

SINGLE = -(2**31)  # the iteration under which ClearML keeps single values
BATCH = 500  # events of one request
TIMEOUT = 10.0  # seconds for one request, by which the SDK itself does not abide
NOBODY = "slotloop"  # in place of this machine's name
TYPES = {"prepare": "data_processing", "extract": "data_processing", "evaluate": "testing"}
ENDED = {"completed": "completed", "failed": "failed", "stopped": "stopped", "killed": "stopped"}


class ClearML:
    """One task per stage run, in one project, child of its upstream stage's task.

    A server is set up by ``clearml.conf`` or CLEARML_API_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY; without, records
    wait.

    Args:
        project: name of the project.
        host_name: also send the name of this machine.
    """

    name = "clearml"

    def __init__(self, project: str = "slotloop", host_name: bool = False) -> None:
        self.project, self.host = project, platform.node() if host_name else ""
        self._session: Any = None
        self._task = ""
        self._asking: threading.Thread | None = None

    def missing(self) -> str:
        """Say what is missing where no server is configured."""
        file = Path(os.environ.get("CLEARML_CONFIG_FILE") or "~/clearml.conf").expanduser()
        keys = ("CLEARML_API_ACCESS_KEY", "CLEARML_API_SECRET_KEY")
        if file.is_file() or all(os.environ.get(key) for key in keys) or os.environ.get("CLEARML_AUTH_TOKEN"):
            return ""
        return "no server is configured (clearml-init writes ~/clearml.conf, or set CLEARML_API_HOST and the two API keys)"

    def create(self, facts: dict[str, Any], parent: str) -> str:
        """Create the task; one that was created without our noticing is found by its tag."""
        tag = f"record:{facts['id']}"
        tasks = self._call("tasks.get_all", tags=[tag], only_fields=["id"])["tasks"]
        if tasks:
            return str(tasks[0]["id"])
        tags = [tag, f"stage:{facts['stage']}", f"config:{facts['config'][:12]}"]
        tags += [f"{key}:{facts[key]}" for key in ("preset", "experiment") if facts[key]]
        settings = {key: {"section": "gin", "name": key, "value": value} for key, value in facts["settings"].items()}
        script = {"repository": facts["repository"], "branch": facts["branch"], "version_num": facts["revision"]}
        created = self._call(
            "tasks.create", name=facts["stage"], type=TYPES.get(facts["stage"], "training"), project=self._project(),
            tags=tags, hyperparams={"gin": settings},
            script={**script, "entry_point": f"-m stages {facts['stage']}", "working_dir": "."},
            comment="files differ from this revision" if facts["changed"] else "",
            **({"parent": parent} if parent else {}), **({"runtime": {"hostname": self.host}} if self.host else {}),
        )  # fmt: skip
        return str(created["id"])

    def begin(self, run: str, facts: dict[str, Any]) -> None:
        """Start the task, or start it again."""
        self._task = run
        self._call("tasks.started", task=run, force=True)

    def scalars(self, series: str, rows: Sequence[Row]) -> None:
        """One event per value; ``loss/step_0`` is series ``step_0`` of plot ``loss``. Values that are not finite are left out."""
        events = []
        for step, numbers in rows:
            for key, value in numbers.items():
                plot, _, line = key.partition("/")
                events.append(self._scalar(f"{series}/{plot}" if series else plot, line or plot, step, value))
        self._events(events)

    def end(self, facts: dict[str, Any], files: Path) -> None:
        """Single values, short curves, pictures, artifacts, models, status."""
        if facts["status"] != "killed":
            self._events([self._scalar("Summary", name, SINGLE, value) for name, value in values.single(files).items()])
            for series, name, points in values.curves(files):
                self.scalars(series, [(step, {name: value}) for step, value in points])
            self._pictures(facts, files)
            papers = [file for file in sorted(files.rglob("*")) if file.suffix in (".json", ".md", ".gin", ".yaml")]
            artifacts = [self._artifact(facts, file, files) for file in papers]
            self._call("tasks.add_or_update_artifacts", task=self._task, artifacts=artifacts, force=True)
            self._models(facts)
        self._call(f"tasks.{ENDED[facts['status']]}", task=self._task, force=True, status_reason=facts["status"])

    def enqueue(self, stage: str, queue: str, source: Mapping[str, str], entry_point: str, requirements: str) -> str:
        """Create a task that an agent runs from a clone, put it into a queue, and return its id.

        Args:
            stage: name of the task.
            queue: name of the queue.
            source: ``repository``, ``branch`` and ``revision``.
            entry_point: what Python is called with.
            requirements: packages with versions; "" = those that the agent finds in the repository.

        Raises:
            TrackingError: no server, no such queue, or the server refuses.
        """
        if missing := self.missing():
            raise TrackingError(f"ClearML: {missing}")
        queues = {entry["name"]: entry["id"] for entry in self._call("queues.get_all", only_fields=["id", "name"])["queues"]}
        if queue not in queues:
            raise TrackingError(f"ClearML has no queue '{queue}'; it has: {', '.join(sorted(queues)) or 'none'}")
        script = {"repository": source["repository"], "branch": source["branch"], "version_num": source["revision"]}
        created = self._call(
            "tasks.create", name=f"{stage} (queued)", type=TYPES.get(stage, "training"), project=self._project(),
            tags=["queued", f"stage:{stage}"],
            script={
                **script, "binary": "python", "entry_point": entry_point, "working_dir": ".",
                **({"requirements": {"pip": requirements}} if requirements else {}),
            },
        )  # fmt: skip
        self._call("tasks.enqueue", task=created["id"], queue=queues[queue])
        return str(created["id"])

    def _project(self) -> str:
        """The project; of senders that find none at the same time one makes it."""
        root().mkdir(parents=True, exist_ok=True)
        with lock(root() / "project", patience=2 * TIMEOUT):
            projects = self._call("projects.get_all", name=f"^{re.escape(self.project)}$", only_fields=["id", "name"])["projects"]
            exact = [entry["id"] for entry in projects if entry["name"] == self.project]
            return str(exact[0] if exact else self._call("projects.create", name=self.project, description="")["id"])

    def _scalar(self, metric: str, variant: str, step: int, value: float) -> dict[str, Any]:
        event = {"type": "training_stats_scalar", "task": self._task, "iter": step, "timestamp": _now()}
        return {**event, "metric": metric, "variant": variant, "value": value}

    def _pictures(self, facts: dict[str, Any], files: Path) -> None:
        event = {"type": "training_debug_image", "task": self._task, "iter": 0, "metric": facts["stage"]}
        for file in reported.pictures(files):
            name = file.relative_to(files).with_suffix("").as_posix()
            self._events([{**event, "variant": name, "url": self._upload(facts, file, files), "timestamp": _now()}])

    def _artifact(self, facts: dict[str, Any], file: Path, files: Path) -> dict[str, Any]:
        content = file.read_bytes()
        kind = mimetypes.guess_type(file.name)[0] or "text/plain"
        about = {"content_type": kind, "preview": content[:2000].decode(errors="replace")}
        key, url = file.relative_to(files).as_posix(), self._upload(facts, file, files)
        return {"key": key, "type": "custom", "uri": url, "content_size": len(content), "type_data": about}

    def _models(self, facts: dict[str, Any]) -> None:
        """Models by reference: their weights stay where they are."""
        fields = ["id", "name"]
        known = {m["name"]: m["id"] for m in self._call("models.get_all", task=[self._task], only_fields=fields)["models"]}
        for model in facts["models"]:
            about = f"sha256 {model['sha256']}, {model['bytes']} bytes, revision {facts['revision']}"
            made = {"task": self._task, "name": model["path"], "uri": model["path"], "framework": "PyTorch", "comment": about}
            identity = known.get(model["path"]) or self._call("models.create", **made)["id"]
            self._call("tasks.add_or_update_model", task=self._task, name=model["path"], model=identity, type="output")

    def _upload(self, facts: dict[str, Any], file: Path, files: Path) -> str:
        """Put a file on the files server; returns its address there."""
        path = f"{self.project}/{facts['stage']}.{self._task}/{file.relative_to(files).as_posix()}"

        def post(session: Any) -> tuple[str, Any]:
            from clearml.backend_api.utils import get_http_session_with_retry

            server = str(session.get_files_server_host(session.config)).rstrip("/")
            with get_http_session_with_retry(total=0, config=session.config) as http:
                return server, http.post(server, files={path: file.read_bytes()}, headers=session.add_auth_headers({}))

        server, answer = self._answer(post)
        self._accepted(f"the upload of {file.name}", answer)
        return f"{server}/{quote(path)}"

    def _events(self, events: list[dict[str, Any]]) -> None:
        finite = [event for event in events if math.isfinite(event.get("value", 0.0))]
        for start in range(0, len(finite), BATCH):
            lines = "\n".join(json.dumps(event) for event in finite[start : start + BATCH])
            answer = self._send("events.add_batch", data=lines.encode(), headers={"Content-Type": "application/json-lines"})
            if answer.get("errors"):
                raise TrackingError(f"ClearML's server refused {answer['errors']} events: {answer.get('errors_info')}")

    def _call(self, endpoint: str, **body: Any) -> dict[str, Any]:
        return self._send(endpoint, json=body)

    def _send(self, endpoint: str, **request: Any) -> dict[str, Any]:
        answer = self._answer(lambda session: session.send_request(*endpoint.split("."), method="post", **request))
        self._accepted(endpoint, answer)
        try:
            return dict(answer.json()["data"])
        except (ValueError, KeyError, TypeError):
            raise TrackingError(f"what answers {endpoint} is not a ClearML server") from None

    def _answer(self, ask: Callable[[Any], Any]) -> Any:
        """Ask the server once, in a thread of its own: the SDK may wait for minutes, and where a certificate is wrong for ever."""
        import requests

        _sdk()  # on a busy machine its import takes as long as a server may take to answer
        if self._asking is not None and self._asking.is_alive():
            self._asking.join(TIMEOUT)
        answers, errors = list[Any](), list[Exception]()

        def work() -> None:
            try:
                self._session = self._session or _session(self.host)
                answers.append(ask(self._session))
            except Exception as error:
                errors.append(error)

        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=work, daemon=True)
            self._asking.start()
            self._asking.join(TIMEOUT)
        if errors and not isinstance(errors[0], requests.RequestException):
            raise errors[0]
        if not answers:
            raise Unreachable(f"ClearML's server does not answer ({type(errors[0]).__name__ if errors else 'Timeout'})")
        return answers[0]

    def _accepted(self, what: str, answer: Any) -> None:
        """Raise TrackingError unless the server has done what it was asked for."""
        if answer.status_code != 200:
            reason = answer.json().get("meta", {}).get("result_msg", "") if "json" in answer.headers.get("Content-Type", "") else ""
            raise TrackingError(f"ClearML's server refused {what}: status {answer.status_code} {reason}".rstrip())


def _now() -> int:
    """Milliseconds since 1970, as events hold them."""
    return int(time.time() * 1000)


def _sdk() -> Any:
    """Import the class of the SDK's sessions.

    Raises:
        TrackingError: the package is not installed.
    """
    try:
        from clearml.backend_api import Session
    except ImportError:
        raise TrackingError("the package clearml is not installed: pip install 'slotloop[clearml]'") from None
    return Session


def _session(host: str) -> Any:
    """The SDK's session, which knows clearml.conf, made to try once and not to name this machine in each request."""
    import requests

    try:
        return _sdk()(worker=host or NOBODY, http_retries_config={"total": 0})
    except Exception as error:  # the SDK wraps whatever happened in a LoginError
        if isinstance(error.__context__, requests.RequestException) or isinstance(error, requests.RequestException):
            raise Unreachable(f"ClearML's server does not answer ({type(error.__context__ or error).__name__})") from None
        raise TrackingError(f"ClearML: {str(error).splitlines()[0]}") from None
