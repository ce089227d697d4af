"""TensorBoard: one event file per run, written without TensorFlow. ``tensorboard --logdir .tracking/tensorboard`` shows them."""

import shutil
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.tracking import run_log, values
from pipeline.tracking.run_log import TrackingError
from pipeline.tracking.uploader import Row


class TensorBoard:
    """One folder per stage run. A sender that takes over writes it anew: what the one before left may end in half an event.

    Args:
        folder: of all runs; within ``.tracking/`` unless it is absolute.
    """

    name = "tensorboard"
    resumes = False

    def __init__(self, folder: str = "tensorboard") -> None:
        self.folder = folder
        self._library = SimpleNamespace()
        self._file = Path()

    def missing(self) -> str:
        """Nothing: a file can always be written."""
        return ""

    def create(self, facts: dict[str, Any], parent: str) -> str:
        """The run's folder."""
        return str(facts["record"])

    def begin(self, run: str, facts: dict[str, Any]) -> None:
        """Put a new event file in place of what is there; the settings come first."""
        self._library = _library()
        folder = run_log.root() / self.folder / run
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._file = folder / f"events.out.tfevents.{int(time.time())}.slotloop"
        self._write({"file_version": "brain.Event:2"})
        told = {key: facts[key] for key in ("preset", "experiment", "config", "revision", "parent")} | facts["settings"]
        table = "\n".join(["| setting | value |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in told.items())])
        self._write({"summary": self._library.hparams_pb(facts["settings"], trial_id=run)}, self._page("settings", table))

    def scalars(self, series: str, rows: Sequence[Row]) -> None:
        """One event a row."""
        prefix, summary, events = f"{series}/" if series else "", self._library.Summary, []
        for step, held in rows:
            told = [summary.Value(tag=prefix + key, simple_value=value) for key, value in held.items()]
            events.append({"step": step, "summary": summary(value=told)})
        self._write(*events)

    def end(self, facts: dict[str, Any], files: Path) -> None:
        """Single values, short curves, pictures, pages, models, status."""
        if facts["status"] != "killed":
            for series, name, points in values.curves(files):
                self.scalars(series, [(step, {name: value}) for step, value in points])
            self.scalars("single", [(0, values.single(files))])
            self._write(*[self._picture(_name(file, files), file.read_bytes()) for file in sorted(files.rglob("*.png"))])
            self._write(*[self._page(_name(file, files), file.read_text()) for file in sorted(files.rglob("*.md"))])
            models = [f"{model['path']}, {model['bytes']} bytes, sha256 {model['sha256']}" for model in facts["models"]]
            self._write(self._page("models", "\n".join(models)))
        self._write(self._page("status", facts["status"]))

    def _page(self, tag: str, text: str) -> dict[str, Any]:
        return {"summary": self._library.text_pb(tag, text)}

    def _picture(self, tag: str, png: bytes) -> dict[str, Any]:
        summary, (width, height) = self._library.Summary, struct.unpack(">II", png[16:24])
        image = summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        return {"summary": summary(value=[summary.Value(tag=tag, image=image)])}

    def _write(self, *events: dict[str, Any]) -> None:
        with self._file.open("ab") as file:
            for event in events:
                self._library.RecordWriter(file).write(self._library.Event(wall_time=time.time(), **event).SerializeToString())


def _name(file: Path, files: Path) -> str:
    return file.relative_to(files).with_suffix("").as_posix()


def _library() -> SimpleNamespace:
    """What is used of TensorBoard."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise TrackingError("the package tensorboard is not installed: pip install 'slotloop[tensorboard]'") from None
    return SimpleNamespace(Event=Event, Summary=Summary, hparams_pb=hparams_pb, text_pb=text_pb, RecordWriter=RecordWriter)
