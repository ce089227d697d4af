"""TensorBoard through torch's ``SummaryWriter``: an event file per run, shown by ``tensorboard --logdir .tracking/tensorboard``."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking import reported, run_log, values
from pipeline.tracking.delivery import Row
from pipeline.tracking.run_log import TrackingError


class TensorBoard:
    """One folder per stage run. A sender that takes over writes it anew: what the one before left may end in half an event.

    Args:
        folder: of all runs; within ``.tracking/`` unless it is absolute.
    """

    name = "tensorboard"

    def __init__(self, folder: str = "tensorboard") -> None:
        self.folder = folder
        self._folder = Path()
        self._writer: Any = None

    def missing(self) -> str:
        """Report nothing missing: a file can always be written."""
        return ""

    def create(self, facts: dict[str, Any], parent: str) -> str:
        """Name the folder of the run's record."""
        return str(facts["record"])

    def begin(self, run: str, facts: dict[str, Any]) -> None:
        """Put a new event file in place of what is there; the settings come first."""
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        except ImportError:
            raise TrackingError("the package tensorboard is not installed: pip install 'slotloop[tensorboard]'") from None
        folder = run_log.root() / self.folder / run
        shutil.rmtree(folder, ignore_errors=True)
        self._folder, self._writer = folder, SummaryWriter(str(folder))
        for summary in hparams(facts["settings"], {}):
            self._writer.file_writer.add_summary(summary)
        info = {key: facts[key] for key in ("preset", "experiment", "config", "revision", "parent")} | facts["settings"]
        lines = ["| setting | value |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in info.items())]
        self._writer.add_text("settings", "\n".join(lines))

    def scalars(self, series: str, rows: Sequence[Row]) -> None:
        """Write one event a value, and have them on disk."""
        prefix = f"{series}/" if series else ""
        for step, row in rows:
            for key, value in row.items():
                self._writer.add_scalar(prefix + key, value, step)
        self._writer.flush()

    def end(self, facts: dict[str, Any], files: Path) -> None:
        """Single values, short curves, pictures, pages, models, status."""
        if facts["status"] != "killed":
            for series, name, points in values.curves(files):
                self.scalars(series, [(step, {name: value}) for step, value in points])
            self.scalars("single", [(0, values.single(files))])
            for file in reported.pictures(files):
                self._writer.file_writer.add_summary(_picture(_name(file, files), file))
            for file in sorted(files.rglob("*.md")):
                self._writer.add_text(_name(file, files), file.read_text())
            models = [f"{model['path']}, {model['bytes']} bytes, sha256 {model['sha256']}" for model in facts["models"]]
            self._writer.add_text("models", "\n".join(models))
        self._writer.add_text("status", facts["status"])
        self._writer.close()
        for (
            file
        ) in self._folder.iterdir():  # the library names it after this machine; 0: who reads already looks at later ones only
            file.rename(self._folder / "events.out.tfevents.0.slotloop")


def _name(file: Path, files: Path) -> str:
    return file.relative_to(files).with_suffix("").as_posix()


def _picture(tag: str, file: Path) -> Any:
    """A picture as it is: one that moves does so on the page too."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(file) as image:
        width, height = image.size
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
    return Summary(value=[Summary.Value(tag=tag, image=picture)])
