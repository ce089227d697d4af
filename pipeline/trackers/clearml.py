"""ClearML, through the REST session of its SDK: every call returns when it has arrived or fails within seconds.

The SDK's ``Task`` is not used: it patches the process that it runs in, reads the host, the packages and the uncommitted diff, and
waits for hours where no server answers. Scalars that are sent twice are stored once: the server's key of an event is (task,
iteration, metric, variant). Source: clearml-server, apiserver/bll/event/event_bll.py, ``event_id_fields``.
"""

import json
import math
import mimetypes
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.shipping import Row, TrackingError

SUMMARY = -(2**31)  # the iteration under which ClearML keeps single values
BATCH = 500  # events of one request
TIMEOUT = 10.0  # seconds for one request
TYPES = {"backbone": "training", "extract": "data_processing", "prepare": "data_processing", "evaluate": "testing"}
ENDED = {"completed": "completed", "failed": "failed", "stopped": "stopped"}


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
        self.project, self.host_name = project, host_name
        self._session: Any = None
        self._task = ""

    def missing(self) -> str:
        """No server is configured."""
        file = Path(os.environ.get("CLEARML_CONFIG_FILE") or "~/clearml.conf").expanduser()
        keys = ("CLEARML_API_ACCESS_KEY", "CLEARML_API_SECRET_KEY")
        if file.is_file() or all(os.environ.get(key) for key in keys) or os.environ.get("CLEARML_AUTH_TOKEN"):
            return ""
        return "no server is configured (clearml-init writes ~/clearml.conf, or set CLEARML_API_HOST and the two API keys)"

    def open(self, record: str, facts: dict[str, Any], run: str, parent: str) -> str:
        """Create the task, or go on with it; a task that was created without our noticing is found by its tag."""
        self._session = self._session or _session()
        tag = f"record:{record}"
        if not run:
            found = self._call("tasks.get_all", tags=[tag], only_fields=["id"])["tasks"]
            run = found[0]["id"] if found else self._create(tag, facts, parent)
        self._task = run
        if "status" not in facts:
            self._call("tasks.started", task=run, force=True)
        return run

    def scalars(self, rows: Sequence[Row]) -> None:
        """One event per value; ``loss/step_0`` is series ``step_0`` of plot ``loss``. Values that are not finite are left out."""
        self._events([self._scalar(key, step, value) for step, values in rows for key, value in values.items()])

    def finish(self, facts: dict[str, Any], files: Path) -> None:
        """Settings, single values, steps of the recursion, pictures, artifacts, models, status."""
        metrics = {str(file.relative_to(files)): json.loads(file.read_bytes()) for file in sorted(files.rglob("metrics.json"))}
        values = {name.removesuffix("metrics.json") + key: x for name, held in metrics.items() for key, x in flat(held).items()}
        events = [self._scalar(f"Summary/{key}", SUMMARY, x) for key, x in values.items()]
        for name, held in metrics.items():
            events += self._by_step(name.removesuffix("metrics.json"), held)
        for picture in sorted(files.rglob("*.png")):
            event = {"type": "training_debug_image", "task": self._task, "iter": 0, "metric": facts["stage"]}
            events.append({**event, "variant": picture.stem, "url": self._upload(picture, facts), "timestamp": _now()})
        self._events(events)
        reported = [file for file in sorted(files.rglob("*")) if file.suffix in (".json", ".md", ".gin", ".yaml")]
        artifacts = [self._artifact(file, files, facts) for file in reported]
        self._call("tasks.add_or_update_artifacts", task=self._task, artifacts=artifacts)
        for model in facts.get("models", []):
            self._call(
                "models.create", task=self._task, name=model["path"], uri=f"file://{model['path']}", framework="PyTorch",
                comment=f"sha256 {model['sha256']}, {model['bytes']} bytes, revision {facts['revision']}", tags=["slotloop"],
            )  # fmt: skip
        self._call(f"tasks.{ENDED[facts['status']]}", task=self._task, force=True)

    def _create(self, tag: str, facts: dict[str, Any], parent: str) -> str:
        tags = [tag, f"stage:{facts['stage']}", f"config:{facts['config'][:12]}"]
        tags += [f"{key}:{facts[key]}" for key in ("preset", "experiment") if facts[key]]
        settings = {key: {"section": "gin", "name": key, "value": value} for key, value in facts["settings"].items()}
        script = {"repository": facts["repository"], "branch": facts["branch"], "version_num": facts["revision"]}
        created = self._call(
            "tasks.create", name=facts["stage"], type=TYPES.get(facts["stage"], "training"), project=self._project(),
            tags=tags, parent=parent or None, hyperparams={"gin": settings},
            script={**script, "entry_point": f"-m stages {facts['stage']}", "working_dir": "."},
            comment="files differ from this revision" if facts["changed"] else "",
            runtime={"hostname": platform.node()} if self.host_name else {},
        )  # fmt: skip
        return str(created["id"])

    def _project(self) -> str:
        found = self._call("projects.get_all", name=f"^{self.project}$", only_fields=["id", "name"])["projects"]
        exact = [entry["id"] for entry in found if entry["name"] == self.project]
        return str(exact[0] if exact else self._call("projects.create", name=self.project, description="")["id"])

    def _scalar(self, key: str, step: int, value: float) -> dict[str, Any]:
        metric, _, variant = key.partition("/")
        event = {"type": "training_stats_scalar", "task": self._task, "iter": step, "timestamp": _now()}
        return {**event, "metric": metric, "variant": variant or metric, "value": value}

    def _by_step(self, prefix: str, metrics: dict[str, Any]) -> list[dict[str, Any]]:
        """``exact_by_step`` and the like of evaluate: a curve over recursion steps for every model."""
        return [
            self._scalar(f"{prefix}{name}/{model}", step, value["mean"])
            for model, held in metrics.items() if isinstance(held, dict)
            for name, values in held.items() if name.endswith("_by_step")
            for step, value in enumerate(values)
        ]  # fmt: skip

    def _artifact(self, file: Path, files: Path, facts: dict[str, Any]) -> dict[str, Any]:
        content = file.read_bytes()
        kind = {
            "content_type": mimetypes.guess_type(file.name)[0] or "text/plain",
            "preview": content[:2000].decode(errors="replace"),
        }
        key = str(file.relative_to(files))
        return {"key": key, "type": "custom", "uri": self._upload(file, facts), "content_size": len(content), "type_data": kind}

    def _upload(self, file: Path, facts: dict[str, Any]) -> str:
        """Put a file on the files server; returns its address there."""
        import requests

        path = f"{self.project}/{facts['stage']}.{self._task}/{file.name}"
        host = self._session.get_files_server_host(self._session.config).rstrip("/")
        try:
            sent = requests.post(host, files={path: file.read_bytes()}, headers=self._session.add_auth_headers({}), timeout=TIMEOUT)
        except requests.RequestException as error:
            raise TrackingError(f"ClearML's files server does not answer ({type(error).__name__})") from None
        if sent.status_code != 200:
            raise TrackingError(f"ClearML's files server refused {file.name}: status {sent.status_code}")
        return f"{host}/{path}"

    def _events(self, events: list[dict[str, Any]]) -> None:
        finite = [event for event in events if math.isfinite(event.get("value", 0.0))]
        for start in range(0, len(finite), BATCH):
            lines = "\n".join(json.dumps(event) for event in finite[start : start + BATCH])
            self._send("events.add_batch", data=lines, headers={"Content-Type": "application/json-lines"})

    def _call(self, endpoint: str, **body: Any) -> dict[str, Any]:
        return dict(self._send(endpoint, json=body))

    def _send(self, endpoint: str, **request: Any) -> Any:
        import requests

        service, action = endpoint.split(".")
        try:
            answer = self._session.send_request(service, action, method="post", **request)
        except requests.RequestException as error:
            raise TrackingError(f"ClearML's server does not answer ({type(error).__name__})") from None
        if answer.status_code != 200:
            told = answer.json().get("meta", {}).get("result_msg", "") if "json" in answer.headers.get("Content-Type", "") else ""
            raise TrackingError(f"ClearML's server refused {endpoint}: status {answer.status_code} {told}".rstrip())
        return answer.json()["data"]


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Numbers of nested metrics as ``a.b.c``; an interval ``{"mean", "low", "high", "n"}`` is its mean.

    >>> flat({"warmup": {"nll": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}}, "steps": 3, "headline": "test"})
    {'warmup.nll': 0.5, 'steps': 3.0}
    """
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            inner = {"": float(value["mean"])} if "mean" in value else {f".{name}": x for name, x in flat(value).items()}
            found |= {f"{key}{name}": x for name, x in inner.items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
    return found


def _now() -> int:
    """Milliseconds since 1970, as events hold them."""
    return int(time.time() * 1000)


def _session() -> Any:
    """A session that fails soon; the SDK's own waits up to 300 s and tries 240 times."""
    try:
        from clearml.backend_api import Session
    except ImportError:
        raise TrackingError("the package clearml is not installed: pip install 'slotloop[clearml]'") from None
    import requests

    class Impatient(Session):
        _session_initial_timeout = _session_timeout = _write_session_timeout = (3.0, TIMEOUT)

    try:
        return Impatient(worker="slotloop", http_retries_config={"total": 1, "connect": 1, "read": 0, "backoff_factor": 0.1})
    except requests.RequestException as error:
        raise TrackingError(f"ClearML's server does not answer ({type(error).__name__})") from None
    except ValueError as error:
        raise TrackingError(f"ClearML's configuration is wrong: {error}") from None
