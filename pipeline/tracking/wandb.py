"""Tracking by Weights & Biases. Offline by default: runs are folders in ``.tracking/wandb``, and ``wandb sync`` sends one.

Sent are settings, curves, metrics, pictures and the models' places and hashes. The library's own collecting of code, host,
packages, console and machine load is off, and so are its reports about itself, which otherwise leave even in offline mode.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.tracking import reported, run_log, values
from pipeline.tracking.delivery import Row, Unreachable
from pipeline.tracking.run_log import TrackingError

TIMEOUT = 30.0  # seconds for the beginning of a run, and for its end


class WandB:
    """One run per stage run, its upstream run among its settings, experiments as groups.

    Its library keeps no account of what has arrived, so a sender that takes over sends every row again: offline in place of what is
    there, online as steps that the service has and drops.

    Args:
        project: name of the project.
        mode: "offline" writes folders, "online" sends at once (``wandb login`` or WANDB_API_KEY).
    """

    name = "wandb"

    def __init__(self, project: str = "slotloop", mode: Literal["offline", "online"] = "offline") -> None:
        self.project, self.mode = project, mode
        self._run: Any = None
        self._step = -1

    def missing(self) -> str:
        """Say what is missing: online, the key of an account."""
        netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        known = os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text())
        return "" if self.mode == "offline" or known else "no key (wandb login, or set WANDB_API_KEY)"

    def create(self, facts: dict[str, Any], parent: str) -> str:
        """Name the run by its record's own id."""
        return str(facts["id"])

    def begin(self, run: str, facts: dict[str, Any]) -> None:
        """Begin a run; offline in place of what an earlier sender left of it."""
        wandb = _library()
        if self._run is not None:  # given up after an error
            self._run.finish(exit_code=1)
        for folder in (run_log.root() / "wandb").glob(f"*run-*-{run}"):
            shutil.rmtree(folder)
        origin = {key: facts[key] for key in ("preset", "experiment", "config", "revision", "repository", "branch", "parent")}
        quiet = wandb.Settings(
            console="off", disable_code=True, disable_git=True, save_code=False, host="", silent=True, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False, init_timeout=TIMEOUT,
            finish_timeout=TIMEOUT, finish_timeout_raises=True,
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=self.project, mode=self.mode, dir=str(run_log.root()), id=run, name=facts["record"],
                resume="allow" if self.mode == "online" else None, group=facts["experiment"] or None, job_type=facts["stage"],
                config={**origin, **facts["settings"]}, settings=quiet, reinit="create_new",
            )  # fmt: skip
        except wandb.errors.CommError as error:
            wandb.teardown()  # or its service takes the run to be in use when we try again
            raise Unreachable(f"Weights & Biases does not answer ({str(error).splitlines()[0]})") from None
        self._step = -1

    def scalars(self, series: str, rows: Sequence[Row]) -> None:
        """One row of history each, drawn over the step of its own series."""
        prefix = f"{series}/" if series else ""
        for key in {key: None for _, numbers in rows for key in numbers}:
            self._run.define_metric(f"{prefix}{key}", step_metric=f"{prefix}step")
        for step, numbers in rows:
            self._step += 1
            self._run.log({f"{prefix}{key}": value for key, value in {"step": step, **numbers}.items()}, step=self._step)

    def end(self, facts: dict[str, Any], files: Path) -> None:
        """Single values, short curves, pictures, models, status."""
        import wandb

        if facts["status"] != "killed":
            for series, name, points in values.curves(files):
                self.scalars(f"{series}/{name}".strip("/"), [(step, {"value": value}) for step, value in points])
            named = {file.relative_to(files).with_suffix("").as_posix(): file for file in reported.pictures(files)}
            self._run.log({name: _media(file) for name, file in named.items()}, step=self._step + 1)
            self._run.summary.update(values.single(files))
            self._run.config.update({"models": facts["models"]})
            if (health := files / "health.md").is_file():
                self._run.summary["health"] = health.read_text()
        self._run.summary["status"] = facts["status"]
        try:
            self._run.finish(exit_code=0 if facts["status"] == "completed" else 1)
        except TimeoutError:
            raise Unreachable(f"Weights & Biases has not taken everything within {TIMEOUT:g} s") from None
        finally:
            self._run = None
        if self.mode == "offline":
            wandb.teardown()  # its service may write the run's file only after finish has returned (0.31.0), and is waited for here


def _library() -> Any:
    """The package, told to report nothing about itself."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb
    except ImportError:
        raise TrackingError("the package wandb is not installed: pip install 'slotloop[wandb]'") from None
    return wandb


def _media(file: Path) -> Any:
    """A picture, or one that moves, which the library would show still as a picture."""
    import wandb

    return wandb.Video(str(file), format="gif") if file.suffix == ".gif" else wandb.Image(str(file))
