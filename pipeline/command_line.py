"""The command line: every stage is a Fire CLI, whose flags are those of all stages and the defaulted parameters of its ``run``.

Fire would run a function before it refuses an unknown flag, take the word after a switch for its value, keep the last of two
values, and make numbers and maps of strings. So its functions only collect a ``Request``, what they collect stays text, and their
arguments come in the one form that it cannot misread, ``--name=value``; ``launcher`` runs what was requested. The only module that
imports ``fire``.
"""

import ast
import contextlib
import importlib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import fire

from pipeline.errors import ConfigError
from pipeline.machine import process
from pipeline.settings import params
from pipeline.settings.describe import argument_meanings

STAGES, SECTIONS = params.STAGES, params.SECTIONS
# Commands without settings: they look at what there is, and their positional words are their own.
TOOLS = ("compare", "doctor", "env", "follow", "new", "serve", "visualise", "watch")
COMMANDS = ("configure", *SECTIONS, *TOOLS)
HELP = ("--help", "-h")
PROGRAM = "python -m stages"
CODE = Path(__file__).resolve().parent.parent

F = TypeVar("F", bound=Callable[..., object])
Parameters = Mapping[str, inspect.Parameter]


@dataclass(frozen=True)
class Request:
    """What a command line asks for: a stage, and what every stage understands.

    Attributes:
        stage: its name.
        overrides: settings as name.param=value, strongest of all; over params.yaml. Of a tool its positional words.
        config: a file that configure wrote, used instead of params.yaml (what dvc.yaml does).
        out: folder to write to; default: the configured one under DVC, else runs/<stage>/<digest of the settings>.
        device: "cpu", "cuda", "cuda:1" ...; short for runtime.Runtime.device=...
        check: resolve and check only.
        print_config: print the resolved configuration only.
        queue: a ClearML queue to send the stage to, as it is at the current commit, instead of running it here.
        own: flags of this stage alone, as they were given.
    """

    stage: str
    overrides: tuple[str, ...] = ()
    config: str = ""
    out: str = ""
    device: str = ""
    check: bool = False
    print_config: bool = False
    queue: str = ""
    own: Mapping[str, str | bool] = field(default_factory=dict)


def parse(stage: str, arguments: Sequence[str]) -> Request:
    """Read a stage's arguments by its Fire CLI; nothing of the stage runs.

    Raises:
        ConfigError: no such stage; an unknown flag, a flag twice, without its value or of another stage.
    """
    if not stage or stage.startswith("-"):
        raise ConfigError(f"name a stage: {', '.join(COMMANDS)}" + (f"; it comes first, before {stage}" if stage else ""))
    if stage not in COMMANDS:
        raise ConfigError(f"unknown stage '{stage}'{params.hint(stage, COMMANDS)}")
    switches = [name for name, parameter in _flags(stage).items() if _is_switch(parameter)]
    arguments = _unmistakable(stage, arguments)
    if not _words(stage) and (words := [word for word in arguments if not word.startswith("-")]):
        raise ConfigError(f"{stage} takes no words, got: {' '.join(words)}")
    cli = fire.decorators.SetParseFn(str)(_cli(stage))
    cli = fire.decorators.SetParseFn("True".__eq__, *switches)(cli) if switches else cli  # of no names it would be for all
    request: Request = fire.Fire(cli, command=arguments, name=f"{PROGRAM} {stage}", serialize=lambda _: None)
    return request


def overview() -> str:
    """Fire's help of the whole: the stages, with a line each."""
    return _help({stage: _documented(lambda: None, stage, _summary(stage)) for stage in COMMANDS}, PROGRAM)


def stage_help(stage: str) -> str:
    """Fire's help of one stage: what it does and its flags."""
    return _help(_cli(stage), f"{PROGRAM} {stage}")


def _cli(stage: str) -> Callable[..., Request]:
    """Make the function that Fire reads and calls: the flags are its signature, their meanings its docstring."""
    flags, own = _flags(stage), _own(stage)

    def collect(*overrides: str, **given: str | bool) -> Request:
        shared = {name: given.pop(name) for name in flags if name in given and name not in own}
        return Request(stage, overrides, own=given, **shared)  # type: ignore[arg-type]

    words = _words(stage)
    collect.__signature__ = inspect.Signature([*words, *flags.values()])  # type: ignore[attr-defined]
    docstring = inspect.getdoc(run_function(stage)) or ""
    meanings = argument_meanings(inspect.getdoc(Request) or "") | argument_meanings(docstring)
    names = [*(word.name for word in words), *flags]
    arguments = "\n\nArgs:" * bool(names) + "".join(f"\n    {name}: {meanings[name]}" for name in names)
    what = docstring.partition("\n\n")[0]
    return _documented(collect, stage, f"{_summary(stage)}\n\n{what}{arguments}")


def run_function(stage: str) -> Callable[..., None]:
    """Import a stage's module, not before the stage is named, and return its ``run``."""
    with process.importing():
        function: Callable[..., None] = importlib.import_module(f"stages.{stage}").run
    return function


def _words(stage: str) -> list[inspect.Parameter]:
    """What stands without dashes: settings, or the positional words of a tool that takes any."""
    if stage not in TOOLS:
        return [inspect.Parameter("overrides", inspect.Parameter.VAR_POSITIONAL, annotation=str)]
    return [p for p in inspect.signature(run_function(stage)).parameters.values() if p.kind is p.VAR_POSITIONAL]


def _own(stage: str) -> Parameters:
    """The flags of a stage alone: what its ``run`` has a default for."""
    shared = inspect.signature(Request).parameters
    defaulted = {name: p for name, p in inspect.signature(run_function(stage)).parameters.items() if p.default is not p.empty}
    return {name: p for name, p in defaulted.items() if stage in TOOLS or name not in shared}


def _flags(stage: str) -> Parameters:
    """All flags of a stage: of what all stages understand, what means something to this one, and its own."""
    if stage in TOOLS:
        return _own(stage)
    absent = {"stage", "overrides", "own"}
    absent |= {"config", "print_config"} if stage == "configure" else set()  # it has no settings
    absent |= set() if stage in STAGES else {"queue"}
    absent |= set() if "out" in inspect.signature(run_function(stage)).parameters else {"out"}
    shared = {name: p for name, p in inspect.signature(Request).parameters.items() if name not in absent}
    return {name: p.replace(kind=p.KEYWORD_ONLY) for name, p in (shared | dict(_own(stage))).items()}


def _is_switch(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.default, bool)


def _unmistakable(stage: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with every flag as ``--name=value``."""
    flags = _flags(stage)
    words: list[str] = []
    values: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            words.append(argument)
            continue
        typed, equals, value = argument.partition("=")
        name = _name(stage, typed, argument, flags)
        shown = name.replace("_", "-")
        if name in values:
            raise ConfigError(f"--{shown} is given twice")
        if _is_switch(flags[name]):
            values[name] = value.capitalize() if equals else "True"
            if values[name] not in ("True", "False"):
                raise ConfigError(f"--{shown} is a switch, it is there or not; got '{value}'")
            continue
        values[name] = value if equals else next(rest, "")
        if not values[name] or (not equals and values[name].startswith("--")):
            raise ConfigError(f"--{shown} needs a value (one that begins with dashes: --{shown}=VALUE)")
    return [*words, *(f"--{name}={value}" for name, value in values.items())]


def _name(stage: str, typed: str, argument: str, flags: Parameters) -> str:
    """The flag that is meant; its initial is enough where no other flag begins with it, as Fire's help says."""
    name = typed.removeprefix("--").replace("-", "_")
    if typed.startswith("--") and name in flags:
        return name
    if len(typed) == 2 and len(matches := [flag for flag in flags if flag[0] == typed[1]]) == 1:
        return matches[0]
    owners = [other for other in COMMANDS if name in _flags(other)] if typed.startswith("--") else []
    if owners:
        raise ConfigError(f"{typed} belongs to: {PROGRAM} {' or '.join(owners)}")
    if typed.startswith("--") and name in COMMANDS:
        raise ConfigError(f"{typed} is no flag but a command of its own: {PROGRAM} {name}")
    if "." in name:
        raise ConfigError(f"unknown flag {argument}; a setting stands without dashes: {argument.lstrip('-')}")
    known = [flag.replace("_", "-") for flag in flags]
    raise ConfigError(f"unknown flag {argument}{params.hint(typed.lstrip('-'), [*known, 'help'])}")


def _summary(stage: str) -> str:
    """The first line of a stage's file, which need not be imported for it, without the stage's name."""
    text = ast.get_docstring(ast.parse((CODE / "stages" / f"{stage}.py").read_text())) or ""
    return text.partition("\n")[0].removeprefix(stage).lstrip(",: ")


def _documented(function: F, name: str, text: str) -> F:
    function.__name__, function.__doc__ = name, text
    return function


def _help(component: object, name: str) -> str:
    """Fire's help as text: it would go to standard error, or through a pager to the terminal."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), contextlib.suppress(fire.core.FireExit):
        fire.Fire(component, command=["--", "--help"], name=name)
    return text.getvalue().replace(f"'{name}'", name)
