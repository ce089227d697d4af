"""``python -m stages <stage> [name.param=value ...]``: the one launcher, and the only door to ``fire``.

Resolves the stage's configuration, calls its ``run``, and leaves the operative configuration beside the output. Users see errors
as one line; a traceback is a bug.
"""

import os
import sys
from pathlib import Path

import fire

from pipeline import config
from pipeline.errors import ConfigError, UserError
from pipeline.files import write_atomic
from pipeline.params import hint, read_params

STAGES = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report")
FLAGS = ("config", "out", "check", "print-config", "help")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    try:
        for argument in arguments:
            flag = argument.removeprefix("--").partition("=")[0]
            if argument.startswith("--") and flag not in FLAGS:  # Fire would run the stage first and complain afterwards
                raise ConfigError(f"unknown flag {argument}{hint(flag, FLAGS)}")
        fire.Fire(command, command=arguments, name="python -m stages")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def command(stage: str, *overrides: str, config: str = "", out: str = "", check: bool = False, print_config: bool = False) -> None:
    """Run STAGE with OVERRIDES (name.param=value) over params.yaml.

    Args:
        stage: configure, prepare, backbone, extract, warmup, joint, finetune, controls, evaluate or report.
        overrides: bindings for this run; strongest of all.
        config: a file that configure wrote, used instead of params.yaml (what dvc.yaml does).
        out: folder to write to. Default: the configured one under DVC, ``runs/<stage>`` elsewhere.
        check: resolve and check only.
        print_config: print the resolved configuration only.
    """
    if stage not in ("configure", *STAGES):
        raise ConfigError(f"unknown stage '{stage}'{hint(stage, ('configure', *STAGES))}")
    if config and overrides:
        raise ConfigError("overrides go over params.yaml; give either --config or name.param=value")
    if stage == "configure":
        from stages import configure

        configure.run(out=out or "build/config", stages=STAGES)
        return
    text = _text(stage, config, overrides)
    if print_config:
        print(text, end="")
    elif not check:
        _call(stage, text, out)


def _text(stage: str, file: str, overrides: tuple[str, ...]) -> str:
    if not file:
        return config.resolve(stage, read_params(Path("params.yaml"), STAGES), map(str, overrides))
    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist; run: dvc repro configure")
    return Path(file).read_text()


def _call(stage: str, text: str, out: str) -> None:
    """Run the stage; outside DVC its output goes to ``runs/``, never over what DVC tracks."""
    config.load_text(text, stage)
    if out or "DVC_STAGE" not in os.environ:
        config.bind(f"stages.{stage}.run.out", out or f"runs/{stage}")
    config.stage_function(stage)()
    write_atomic(Path(config.query(f"stages.{stage}.run.out")) / "config.gin", config.operative().encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
