"""The launcher behind ``python -m stages``: resolves a stage's settings, calls its ``run``, and leaves every value in effect beside
the output. Users see errors as one line; a traceback is a bug.
"""

import os
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pipeline import command_line
from pipeline.command_line import SECTIONS, STAGES, TOOLS, Request, run_function
from pipeline.errors import ConfigError, Unhealthy, UserError
from pipeline.files import REFUSALS, refusal, write_atomic
from pipeline.machine import launch, process, slurm, torchrun
from pipeline.machine.out_of_memory import out_of_memory
from pipeline.progress import Progress
from pipeline.settings import config, describe, effective, params

SHARED = ("backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate")  # that several processes can run together
STATUS = {ConfigError: 2, Unhealthy: 3, process.Interrupted: process.INTERRUPTED, process.Lost: process.LOST}  # by the error


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong usage, 3 the doctor has findings, 130, 141 and 143
    ended by a signal.
    """
    try:
        run(arguments)
        sys.stdout.flush()
    except UserError as error:
        _tell(str(error).partition("\n  In call to configurable")[0])  # gin appends where it called
        return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 1)
    except KeyboardInterrupt:
        if not launch.hand_over("interrupted"):
            print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _unread():
            raise
        return 141
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _tell(refusal(error))
        return 1
    except (MemoryError, RuntimeError) as error:
        if (refused := out_of_memory(error)) is None:
            raise
        stage = next((f"{word}: " for word in arguments if word in STAGES), "")
        _tell(f"{stage}{refused}")
        return 1
    return 0


def _tell(message: str) -> None:
    """Print an error, or let what started this process among others do it."""
    if not launch.hand_over(message):
        who = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""
        print(f"error: {who}{message}", file=sys.stderr)


def _unread() -> bool:
    """Whether whoever read what is printed has gone; what is left to be flushed then goes nowhere."""
    stdout = select.poll()
    stdout.register(1, 0)
    if gone := any(event & select.POLLERR for _, event in stdout.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return gone


def run(arguments: Sequence[str]) -> None:
    """Do what ``STAGE [name.param=value ...] [--flag ...]`` asks for.

    Raises:
        UserError: whatever a user can cause; the message says what to do.
    """
    stage, *rest = arguments or [""]
    if stage in command_line.HELP:
        print(command_line.overview(), end="")
        return
    launch.leave_no_stray_rank()
    if stage != "track" and ("DVC_STAGE" in os.environ or "RANK" in os.environ):  # a run's sender outlives it
        process.die_with_parent()
    if stage == "follow" or stage in SHARED:
        torchrun.quieten()  # before anything imports torch
    helped = any(argument in command_line.HELP for argument in rest)
    request = command_line.parse(stage, [argument for argument in rest if argument not in command_line.HELP])
    if stage == "follow" and "RANK" in os.environ:
        _follow()
        return
    if stage in TOOLS:
        with _shown(stage):
            print(command_line.stage_help(stage), end="") if helped else run_function(stage)(*request.overrides, **request.own)
        return
    overrides = _overrides(request)
    if stage == "configure":
        with _shown(stage):
            _configure(request, overrides, helped)
        return
    text = _text(request, overrides)
    if helped:
        print(command_line.stage_help(stage), describe.settings_text(stage), sep="\n", end="")
    elif request.print_config:
        print(text, end="")
    elif request.check:
        return
    elif request.queue:
        _send(request)
    elif stage not in STAGES or _switches(request):
        with _shown(stage):
            _load(request, text)(**_own(request))
    elif stage in SHARED and (several := torchrun.requested()):
        torchrun.launch([*arguments], several)
    elif stage in SHARED and (job := slurm.requested()):
        slurm.launch([*arguments], job)
    elif stage in SHARED and (processes := launch.process_count()) > 1:
        launch.launch([*arguments], processes)
    else:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from pipeline.machine import distributed

            distributed.agree(arguments)
        with _shown(stage):
            _record(request, text)


def _follow() -> None:
    """Run what the job's other processes were given, as one of them."""
    from pipeline.machine import distributed

    work = distributed.agree(())
    if not distributed.local_rank():
        print(f"follow: {shlex.join(work.command)}", flush=True)
    work.take_over()
    run(work.command)


def _send(request: Request) -> None:
    """Send a stage to a queue. Its settings are those of the commit, so none can be given here."""
    if request.overrides or request.config or request.out or request.device or request.own:
        words = "a queued stage runs with what params.yaml says at the commit"
        raise ConfigError(f"{words}; give --queue alone, and commit other settings")
    from pipeline.tracking import queueing

    track = config.resolve("track", params.read(Path("params.yaml"), SECTIONS))
    config.load_text(track.text, "track")
    print(queueing.send(request.stage, request.queue, config.argument("stages.track.run", "trackers")))


def _shown(stage: str) -> AbstractContextManager[object]:
    """Show life while a stage works; not of those whose output is for programs, a terminal's whole screen, or without end."""
    return nullcontext() if stage in ("follow", "generate", "serve", "track", "watch") else Progress(stage, stream=sys.stdout)


def _switches(request: Request) -> bool:
    """Whether something else than the stage's work is asked for, such as ``extract --verify``: no run to be recorded."""
    return any(value is True for value in request.own.values())


def _own(request: Request) -> dict[str, str | bool]:
    """The stage's own flags as arguments of its ``run``; of a stage of the pipeline those with a value are settings."""
    return {name: value for name, value in request.own.items() if request.stage not in STAGES or isinstance(value, bool)}


def _overrides(request: Request) -> tuple[str, ...]:
    """The settings of a command line, also those that are said by a flag."""
    stage, own = request.stage, _own(request)
    overrides = (*request.overrides, *(f"{stage}.run.{name}={value}" for name, value in request.own.items() if name not in own))
    overrides += (f"runtime.Runtime.device={request.device}",) if request.device else ()
    if overrides and (request.config or (stage == "configure" and "plan" not in request.own)):
        raise ConfigError(
            "name.param=value, --device and --limit go over params.yaml, for one stage or a plan; give them without --config"
        )
    return overrides


def _configure(request: Request, overrides: tuple[str, ...], helped: bool) -> None:
    """Check every stage, or plan; of all stages the one without settings of its own."""
    if helped:
        print(command_line.stage_help("configure"), end="")
        return
    if request.own and "plan" not in request.own:
        raise ConfigError(f"{', '.join(f'--{name}' for name in request.own)}: says for which devices to plan; give it with --plan")
    out = "" if request.check else request.out or "build/config"
    run_function("configure")(out=out, stages=SECTIONS, overrides=overrides, **request.own)


def _text(request: Request, overrides: tuple[str, ...]) -> str:
    if not request.config:
        return config.resolve(request.stage, params.read(Path("params.yaml"), SECTIONS), overrides).text
    return config.load_file(Path(request.config), request.stage)


def _load(request: Request, text: str) -> Callable[..., None]:
    config.load_text(text, request.stage)
    if request.out:
        config.bind(f"stages.{request.stage}.run.out", request.out)
    return config.stage_function(request.stage)


def _record(request: Request, text: str) -> None:
    """Run the stage and record it; outside DVC its output goes to ``runs/``, never over what DVC tracks."""
    from pipeline.machine import (
        distributed,
        snapshots,  # these bring torch, which checks and help do without
    )
    from pipeline.settings import dependencies
    from pipeline.tracking import run_log

    stage, out = request.stage, request.out
    root = f"stages.{stage}.run"
    identity = dependencies.identity(stage, text, request.config)
    work = _load(Request(stage), text)
    digest = effective.digest(effective.settings(root))
    if out or "DVC_STAGE" not in os.environ:
        config.bind(f"{root}.out", out or f"runs/{stage}/{digest[:12]}")
    settings, folder = effective.settings(root), Path(config.query(f"{root}.out"))
    preset = params.read(Path("params.yaml"), SECTIONS).preset if Path("params.yaml").is_file() else ""
    facts = run_log.RunInfo(
        stage, STAGES.index(stage), preset, identity, digest, settings, folder, snapshots.folders_named_in(text)
    )
    track_config = str(Path(request.config).with_name("track.gin")) if request.config else ""
    with distributed.joined(), snapshots.workspace(stage, identity), snapshots.alone_in(folder):
        if distributed.rank():
            work()
            return
        with run_log.recorded(facts, track_config):
            work()
            write_atomic(folder / "config.gin", effective.gin_text(settings).encode())
            write_atomic(folder / "config.yaml", effective.yaml_text(settings).encode())
    if "DVC_STAGE" not in os.environ:
        print(f"{stage}: wrote {folder}")
