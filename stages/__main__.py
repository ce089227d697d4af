"""``python -m stages <stage> [name.param=value ...]``: the one launcher, and the only door to ``fire``.

Resolves the stage's configuration, calls its ``run``, and leaves the operative configuration beside the output. Users see errors
as one line; a traceback is a bug.
"""

import os
import sys
from pathlib import Path

import fire

from pipeline import config, describe, params, process, scratch
from pipeline.errors import ConfigError, UserError
from pipeline.files import write_atomic

STAGES = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report")
SWITCHES, VALUES = ("check", "print-config", "help"), ("config", "out")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    try:
        fire.Fire(command, command=normalised(arguments), name="python -m stages")
    except UserError as error:
        message = str(error).partition("\n  In call to configurable")[0]  # gin appends where it called
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def normalised(arguments: list[str]) -> list[str]:
    """The arguments in a form in which Fire cannot misread them: it would run a stage first and complain about a flag afterwards,
    take the word after a switch for its value, and make numbers of strings.

    Raises:
        ConfigError: an unknown flag, a flag without its value, or no stage.
    """
    words: list[str] = []
    flags: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            words.append(repr(argument))
        elif argument.startswith("--") and name in SWITCHES and not equals:
            flags.append(f"--{'usage' if name == 'help' else name.replace('-', '_')}=True")
        elif argument.startswith("--") and name in VALUES:
            value = value if equals else next(rest, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"--{name} needs a value")
            flags.append(f"--{name}={value!r}")
        else:
            raise ConfigError(f"unknown flag {argument}{params.hint(name, (*SWITCHES, *VALUES))}")
    if not words:
        raise ConfigError(f"name a stage: configure, {', '.join(STAGES)}")
    return [*words, *flags]


def command(
    stage: str,
    *overrides: str,
    config: str = "",
    out: str = "",
    check: bool = False,
    print_config: bool = False,
    usage: bool = False,
) -> None:
    """Run STAGE with OVERRIDES (name.param=value) over params.yaml.

    Args:
        stage: configure, prepare, backbone, extract, warmup, joint, finetune, controls, evaluate or report.
        overrides: bindings for this run; strongest of all.
        config: a file that configure wrote, used instead of params.yaml (what dvc.yaml does).
        out: folder to write to. Default: the configured one under DVC, ``runs/<stage>`` elsewhere.
        check: resolve and check only.
        print_config: print the resolved configuration only.
        usage: print every setting of the stage, with type, value and meaning (``--help``).
    """
    if stage not in ("configure", *STAGES):
        raise ConfigError(f"unknown stage '{stage}'{params.hint(stage, ('configure', *STAGES))}")
    if overrides and (config or stage == "configure"):
        raise ConfigError("name.param=value goes over params.yaml, for one stage; give it without --config")
    if stage == "configure":
        from stages import configure

        configure.run(out=out or "build/config", stages=STAGES)
        return
    text = _text(stage, config, overrides)
    if usage:
        print(describe.help_text(stage), end="")
    elif print_config:
        print(text, end="")
    elif not check:
        _call(stage, text, out)


def _text(stage: str, file: str, overrides: tuple[str, ...]) -> str:
    if not file:
        return config.resolve(stage, params.read(Path("params.yaml"), STAGES), overrides).text
    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist; run: dvc repro configure")
    return Path(file).read_text()


def _call(stage: str, text: str, out: str) -> None:
    """Run the stage; outside DVC its output goes to ``runs/``, never over what DVC tracks."""
    if "DVC_STAGE" in os.environ:
        process.die_with_parent()
    identity = scratch.key(text, Path(__file__).resolve().parent.parent)
    config.load_text(text, stage)
    if out or "DVC_STAGE" not in os.environ:
        config.bind(f"stages.{stage}.run.out", out or f"runs/{stage}")
    with scratch.kept(stage, identity):
        config.stage_function(stage)()
    write_atomic(Path(config.query(f"stages.{stage}.run.out")) / "config.gin", config.operative().encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
