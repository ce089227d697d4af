"""Tracking by MLflow, through its client: a SQLite file within ``.tracking/``, or a server.

Rows that are sent twice are stored once: the key of a value is (run, metric, step, time), and the time of all of a run's values is
that of its beginning (mlflow 3.17: store/tracking/dbmodels/models.py, ``SqlMetric``). Its own client adds neither user nor host nor
source file to a run, as ``mlflow.start_run`` does; what the library tells its makers of itself is off. Its store of plain files is
not offered: it refuses to be opened (maintenance mode), keeps rows that are sent twice twice, and there ``loss`` and
``loss/step_0`` are a file and a folder of one name.
"""

import contextlib
import math
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking import run_log, values
from pipeline.tracking.delivery import Row, Unreachable
from pipeline.tracking.run_log import TrackingError, lock

ENDED = {"completed": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "killed": "KILLED"}
BATCH, SETTINGS = 1000, 100  # values and settings of one request, at most
LONGEST = 6000  # characters of a setting or a text beside a run
TIMEOUT = 10  # seconds for one request, and for a SQLite file that somebody else writes
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}  # fmt: skip


class MLflow:
    """One run per stage run, nested below its upstream stage's run.

    Args:
        experiment: name of the experiment.
        uri: address of a server or of a data base; "" = MLFLOW_TRACKING_URI, or where that is not set a SQLite file in
            ``.tracking/mlflow``.
    """

    name = "mlflow"

    def __init__(self, experiment: str = "slotloop", uri: str = "") -> None:
        self.experiment, self.uri = experiment, uri
        self._client: Any = None
        self._run, self._began = "", 0

    def missing(self) -> str:
        """Report nothing missing: a file can always be written."""
        return ""

    def create(self, facts: dict[str, Any], parent: str) -> str:
        """Create the run; one that was created without our noticing is found by its tag."""
        tags = {key: facts[key] for key in ("record", "stage", "preset", "experiment", "config") if facts[key]}
        tags |= {"id": facts["id"], "mlflow.source.name": f"python -m stages {facts['stage']}", "mlflow.source.type": "LOCAL"}
        code = {"commit": facts["revision"], "branch": facts["branch"], "repoURL": facts["repository"]}
        tags |= {f"mlflow.source.git.{key}": value for key, value in code.items() if value}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        with _one_at_a_time(), self._connected() as client:
            experiment = self._experiment(client)
            runs = client.search_runs([experiment], f"tags.id = '{facts['id']}'", max_results=1)
            start = _milliseconds(facts)
            run = runs[0] if runs else client.create_run(experiment, start_time=start, tags=tags, run_name=facts["record"])
            return str(run.info.run_id)

    def begin(self, run: str, facts: dict[str, Any]) -> None:
        """Say that the run goes on, and send those of its settings that are not there."""
        self._run, self._began = run, _milliseconds(facts)
        with self._connected() as client:
            client.update_run(run, status="RUNNING")
            known = client.get_run(run).data.params
            shown = {_name(key): value[:LONGEST] for key, value in facts["settings"].items()}
            fresh = [_entity("Param", key, value) for key, value in shown.items() if key not in known]
            for start in range(0, len(fresh), SETTINGS):
                client.log_batch(run, params=fresh[start : start + SETTINGS])

    def scalars(self, series: str, rows: Sequence[Row]) -> None:
        """One value each, ``validation/loss`` of series ``validation``. Values that are not finite are left out."""
        prefix = f"{series}/" if series else ""
        numbers = [(f"{prefix}{key}", value, step) for step, row in rows for key, value in row.items() if math.isfinite(value)]
        with self._connected() as client:
            for start in range(0, len(numbers), BATCH):
                part = numbers[start : start + BATCH]
                metrics = [_entity("Metric", _name(key), value, self._began, step) for key, value, step in part]
                client.log_batch(self._run, metrics=metrics)

    def end(self, facts: dict[str, Any], files: Path) -> None:
        """Single values, short curves, pictures and other files, models, status; what is wrong with it as the run's description."""
        if facts["status"] != "killed":
            for series, name, points in values.curves(files):
                self.scalars(series, [(step, {name: value}) for step, value in points])
            self.scalars("single", [(0, values.single(files))])
            models = "\n".join(f"{model['path']}, {model['bytes']} bytes, sha256 {model['sha256']}" for model in facts["models"])
            health = files / "health.md"
            texts = {"models": models, "mlflow.note.content": health.read_text() if health.is_file() else ""}
            with self._connected() as client:
                for key, text in texts.items():
                    if text:
                        client.set_tag(self._run, key, text[:LONGEST])
                client.log_artifacts(self._run, str(files))
        with self._connected() as client:
            client.set_tag(self._run, "status", facts["status"])
            client.set_terminated(self._run, ENDED[facts["status"]])

    def _experiment(self, client: Any) -> str:
        """The experiment's id; it is made if need be, its files beside the SQLite file where there is no server."""
        known = client.get_experiment_by_name(self.experiment)
        if known is None:
            place = None if self._address() else (_folder() / "artifacts").resolve().as_uri()
            return str(client.create_experiment(self.experiment, artifact_location=place))
        if known.lifecycle_stage != "active":
            words = f"MLflow's experiment {self.experiment} is deleted: restore it, or name another (mlflow.MLflow.experiment)"
            raise TrackingError(words)
        return str(known.experiment_id)

    def _address(self) -> str:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI", "")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """Give the client within the block; what goes wrong there is a TrackingError of one line."""
        library = _library()
        import requests

        try:
            if self._client is None:
                self._client = library.MlflowClient(self._address() or _own_store(library))
            yield self._client
        except requests.RequestException as error:  # of artifacts; the rest comes wrapped
            raise _refusal(error, str(error)) from None
        except library.exceptions.MlflowException as error:
            raise _refusal(error.__context__, str(error)) from None


def _refusal(cause: BaseException | None, words: str) -> TrackingError:
    """Unreachable where nothing was answered, else what was; an address may hold a password and is not repeated."""
    import requests

    if isinstance(cause, requests.RequestException) and cause.response is None:
        return Unreachable(f"MLflow's server does not answer ({type(cause).__name__})")
    return TrackingError(f"MLflow: {(words.splitlines() or [''])[0]}")


def _entity(kind: str, *fields: Any) -> Any:
    """A metric or a parameter as the library wants it."""
    from mlflow import entities

    return getattr(entities, kind)(*fields)


def _name(key: str) -> str:
    """A name with the characters and of the length that MLflow takes."""
    return re.sub(r"[^\w. /:-]", "_", key)[:250]


def _milliseconds(facts: dict[str, Any]) -> int:
    """When the run began, since 1970."""
    return int(facts["began"] * 1000)


def _folder() -> Path:
    """Where the SQLite file and what belongs to its runs lie."""
    return run_log.root() / "mlflow"


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Of senders that find no experiment at the same time one makes it."""
    run_log.root().mkdir(parents=True, exist_ok=True)
    with lock(run_log.root() / "experiment", patience=2 * TIMEOUT):
        yield


def _own_store(library: Any) -> str:
    """Address of the SQLite file, whose tables are all there: a sender that dies while it makes them leaves another file.

    Raises:
        TrackingError: it cannot be written; the library itself would try for minutes.
    """
    file = (_folder() / "mlflow.db").resolve()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock(file.parent / "lock", patience=math.inf):
            if not file.exists():
                part = file.with_suffix(".part")
                part.unlink(missing_ok=True)
                library.MlflowClient(f"sqlite:///{part}").search_experiments(max_results=1)
                part.replace(file)
        with contextlib.closing(sqlite3.connect(file, timeout=TIMEOUT)) as connection:
            connection.execute("begin immediate")
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(f"{file} cannot be written ({error})") from None
    return f"sqlite:///{file}"


def _library() -> Any:
    """The package, made to report nothing about itself, to try once and to print no more than warnings."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    try:
        import alembic  # noqa: F401  # of the store, which the small package does without, as the next one
        import mlflow
        import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise TrackingError(f"the package {error.name} is not installed: pip install 'slotloop[mlflow]'") from None
    return mlflow
