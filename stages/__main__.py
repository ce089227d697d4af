"""``python -m stages <stage> [name.param=value ...]``: the one launcher, and the only door to ``fire``.

Resolves the stage's configuration, calls its ``run``, and leaves every value in effect beside the output. Users see errors as one
line; a traceback is a bug.
"""

import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

import fire

from pipeline.errors import ConfigError, UserError
from pipeline.files import write_atomic
from pipeline.machine import launch, process
from pipeline.settings import config, describe, effective, params

STAGES = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report")
SECTIONS = (*STAGES, "generate", "export", "ablate", "track")  # what params.yaml configures
SHARED = ("backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate")  # that several processes can run together
PRINT = ("generate", "track")  # what they have to say, instead of writing a folder
SWITCHES = ("check", "print-config", "help", "ship", "verify", "confidence", "plan")
VALUES = ("config", "out", "device", "follow", "model", "prompt", "prompts", "peak", "mfu", "limit")
STATUS = {ConfigError: 2, process.Interrupted: process.INTERRUPTED, process.Lost: process.LOST}  # of the process, by its error
OWN = {  # flags of some stages alone
    "ship": ("track",), "follow": ("track",), "verify": ("extract",),
    "model": ("generate", "export"), "prompt": ("generate",), "prompts": ("generate",), "confidence": ("generate",),
    **dict.fromkeys(("plan", "peak", "mfu"), ("configure",)),
    "limit": ("evaluate",),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong usage, 130, 141 and 143 ended by a signal."""
    try:
        fire.Fire(command, command=normalised(arguments), name="python -m stages")
        sys.stdout.flush()
    except UserError as error:
        message = str(error).partition("\n  In call to configurable")[0]  # gin appends where it called
        if not launch.told_elsewhere(message):
            who = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""
            print(f"error: {who}{message}", file=sys.stderr)
        return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 1)
    except KeyboardInterrupt:
        if not launch.told_elsewhere("interrupted"):
            print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _unread():
            raise
        return 141
    return 0


def _unread() -> bool:
    """Whether whoever read what is printed has gone; what is left to be flushed then goes nowhere."""
    stdout = select.poll()
    stdout.register(1, 0)
    if gone := any(event & select.POLLERR for _, event in stdout.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return gone


def normalised(arguments: list[str]) -> list[str]:
    """The arguments in a form in which Fire cannot misread them: it would run a stage first and complain about a flag afterwards,
    take the word after a switch for its value, and make numbers of strings.

    Raises:
        ConfigError: an unknown flag, a flag twice or without its value, or no stage.
    """
    words: list[str] = []
    flags: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            words.append(repr(argument))
            continue
        if name in flags:
            raise ConfigError(f"--{name} is given twice")
        if argument.startswith("--") and name in SWITCHES and not equals:
            flags[name] = "True"
        elif argument.startswith("--") and name in VALUES:
            value = value if equals else next(rest, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"--{name} needs a value")
            flags[name] = repr(value)
        else:
            raise ConfigError(f"unknown flag {argument}{params.hint(name, (*SWITCHES, *VALUES))}")
    if not words:
        raise ConfigError(f"name a stage: configure, {', '.join(SECTIONS)}")
    renamed = {"help": "usage", "print-config": "print_config"}  # fire keeps --help for itself
    return [*words, *(f"--{renamed.get(name, name)}={value}" for name, value in flags.items())]


def command(
    stage: str,
    *overrides: str,
    config: str = "",
    out: str = "",
    device: str = "",
    check: bool = False,
    print_config: bool = False,
    usage: bool = False,
    **own: bool | str,
) -> None:
    """Run STAGE with OVERRIDES (name.param=value) over params.yaml.

    Args:
        stage: configure, prepare, backbone, extract, warmup, joint, finetune, controls, evaluate, report, generate, export, ablate
            or track.
        overrides: bindings for this run; strongest of all.
        config: a file that configure wrote, used instead of params.yaml (what dvc.yaml does).
        out: folder to write to. Default: the configured one under DVC, else ``runs/<stage>/<id>`` (id: digest of the settings).
        device: "cpu", "cuda", "cuda:1" ...; short for ``runtime.Runtime.device=...``.
        check: resolve and check only.
        print_config: print the resolved configuration only.
        usage: print every setting of the stage, with type, value and meaning (``--help``).
        own: ``ship`` and ``follow`` of track, ``verify`` of extract, ``model`` of generate and export, ``prompt``, ``prompts`` and
            ``confidence`` of generate, ``plan`` of configure with ``peak`` and ``mfu``, ``limit`` of evaluate.
    """
    if stage not in ("configure", *SECTIONS):
        raise ConfigError(f"unknown stage '{stage}'{params.hint(stage, ('configure', *SECTIONS))}")
    if wrong := [flag for flag in own if stage not in OWN[flag]]:
        raise ConfigError(f"--{wrong[0]} belongs to: python -m stages {' or '.join(OWN[wrong[0]])}")
    overrides += (f"runtime.Runtime.device={device}",) if device else ()
    overrides += (f"evaluate.run.limit={own.pop('limit')}",) if "limit" in own else ()
    if overrides and (config or (stage == "configure" and "plan" not in own)):
        raise ConfigError(
            "name.param=value, --device and --limit go over params.yaml, for one stage or a plan; give them without --config"
        )
    if out and stage in PRINT:
        raise ConfigError(f"{stage} prints and writes no folder; without --out, and '> file' to keep it")
    if stage == "configure":
        from stages import configure

        if print_config or usage:
            raise ConfigError(f"configure has no settings; name a stage: {', '.join(SECTIONS)}")
        if own and "plan" not in own:
            raise ConfigError("--peak and --mfu say for which machine to plan; give them with --plan")
        run: Callable[..., None] = configure.run
        run(out="" if check else out or "build/config", stages=SECTIONS, overrides=overrides, **own)
        return
    if stage != "track" and ("DVC_STAGE" in os.environ or "RANK" in os.environ):
        process.die_with_parent()
    text = _text(stage, config, overrides)
    if usage:
        print(describe.help_text(stage, [flag for flag in OWN if stage in OWN[flag]]), end="")
    elif print_config:
        print(text, end="")
    elif check:
        return
    elif stage not in STAGES or own:
        _load(stage, text, out)(**own)
    elif stage in SHARED and (processes := launch.wanted()) > 1:
        launch.launch(sys.argv[1:], processes)
    else:
        _call(stage, text, out, config)


def _text(stage: str, file: str, overrides: tuple[str, ...]) -> str:
    if not file:
        return config.resolve(stage, params.read(Path("params.yaml"), SECTIONS), overrides).text
    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist; run: dvc repro configure")
    return Path(file).read_text()


def _load(stage: str, text: str, out: str = "") -> Callable[..., None]:
    config.load_text(text, stage)
    if out:
        config.bind(f"stages.{stage}.run.out", out)
    return config.stage_function(stage)


def _call(stage: str, text: str, out: str, config_file: str) -> None:
    """Run the stage; outside DVC its output goes to ``runs/``, never over what DVC tracks."""
    from pipeline.machine import (
        distributed,
        snapshots,  # these bring torch, which checks and help do without
    )
    from pipeline.settings import dependencies
    from pipeline.tracking import run_log

    root = f"stages.{stage}.run"
    identity = dependencies.identity(stage, text, config_file)
    run = _load(stage, text)
    digest = effective.digest(effective.settings(root))
    if out or "DVC_STAGE" not in os.environ:
        config.bind(f"{root}.out", out or f"runs/{stage}/{digest[:12]}")
    settings, folder = effective.settings(root), Path(config.query(f"{root}.out"))
    preset = params.read(Path("params.yaml"), SECTIONS).preset if Path("params.yaml").is_file() else ""
    facts = run_log.RunInfo(
        stage, STAGES.index(stage), preset, identity, digest, settings, folder, snapshots.folders_named_in(text)
    )
    with distributed.joined(), snapshots.kept(stage, identity):
        if distributed.rank():
            run()
            return
        with run_log.recorded(facts, str(Path(config_file).with_name("track.gin")) if config_file else ""):
            run()
            write_atomic(folder / "config.gin", effective.gin_text(settings).encode())
            write_atomic(folder / "config.yaml", effective.yaml_text(settings).encode())
    if "DVC_STAGE" not in os.environ:
        print(f"{stage}: wrote {folder}")


if __name__ == "__main__":
    process.leave(main(sys.argv[1:]))
