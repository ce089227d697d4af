"""params.yaml over gin files -> one checked, canonical gin text per stage. The only door to gin.

Later wins: preset < the stage's own .gin < ``common`` < the stage's section < command line. A nested map is a binding:
``loop: {fit: {steps: 100}}`` is ``loop.fit.steps = 100``; a leading name that no .gin file imports is a scope; a single
name in capitals is a macro. What a stage may bind is what its .gin files import; what of it reaches the stage is found by
following references from its ``run``, and everything else is dropped, so a stage's text changes only when the stage does.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import gin
from beartype import BeartypeConf
from beartype.door import is_bearable
from gin import config as gin_config  # private use is confined to this file; the version is pinned

from pipeline.errors import ConfigError
from pipeline.params import Binding, bindings, hint, line, section

ALLOWED = ("components", "pipeline", "stages", "torch")
_TOWER = BeartypeConf(is_pep484_tower=True)


def resolve(stage: str, params: Mapping[str, Any], overrides: Iterable[str] = (), root: Path = Path(".")) -> str:
    """The stage's canonical gin text.

    Args:
        stage: its name.
        params: what ``read_params`` gave.
        overrides: ``name.param=value`` from the command line.
        root: folder that holds ``gin/``.

    Raises:
        ConfigError: a file, name, parameter, type or value is wrong, or a setting reaches nothing.
    """
    presets = root / "gin" / "presets"
    preset = presets / f"{params['preset']}.gin"
    if not preset.is_file():
        have = [p.stem for p in presets.glob("*.gin")]
        raise ConfigError(
            f"{line(params['file'], params['lines'], 'preset')}: unknown preset '{params['preset']}'{hint(params['preset'], have)}"
        )
    files = [preset, root / "gin" / f"{stage}.gin", *_files(section(params, "common"), root), *_files(section(params, stage), root)]
    gin.clear_config()
    gin.add_config_file_search_path(str(root))
    modules: dict[str, str] = {}
    for file in files:
        modules |= _imports(file, root)
        _parse(partial(gin.parse_config_file, str(file)), str(file))
    shared = list(bindings(params, "common"))
    own = [*bindings(params, stage), *map(_override, overrides)]
    prefix = "from __gin__ import dynamic_registration\n" + "".join(f"{line}\n" for line in modules.values())
    bound = {}
    for binding in (*shared, *own):
        optional = binding in shared
        if not _checked(binding, modules, optional):
            continue
        _parse(partial(gin.parse_config, f"{prefix}{binding.key} = {binding.text}"), binding.origin)
        bound[_config_key(binding.key, modules)] = (binding, optional)
    kept = _prune(f"stages.{stage}.run")
    for key, (binding, optional) in bound.items():
        if key not in kept and not optional:
            raise ConfigError(f"{binding.origin}: '{binding.key}' is valid, but nothing that stage {stage} builds uses it")
    _check_required()
    return _canonical(gin.config_str)


def unused_common(params: Mapping[str, Any], texts: Iterable[str]) -> list[Binding]:
    """Bindings of ``common`` whose parameter or macro appears in no stage's text."""
    together = "\n".join(texts)
    return [b for b in bindings(params, "common") if f"{b.key.split('/')[-1]} = " not in together]


def load_text(text: str, stage: str) -> None:
    """Make a canonical text the current configuration."""
    gin.clear_config()
    gin.parse_config(text)
    gin.finalize()
    if gin_config._REGISTRY.get_match(f"stages.{stage}.run") is None:
        raise ConfigError(f"the configuration does not name stages.{stage}.run")


def bind(key: str, value: Any) -> None:
    """Set one parameter of the current configuration."""
    with gin.unlock_config():
        gin.bind_parameter(key, value)


def query(key: str) -> Any:
    """One bound parameter of the current configuration."""
    return gin.query_parameter(key)


def stage_function(stage: str) -> Callable[[], None]:
    """The stage's ``run`` with its parameters bound."""
    function: Callable[[], None] = gin.get_configurable(f"stages.{stage}.run")
    return function


def operative() -> str:
    """Every value that was in effect, defaults included; canonical and re-parsable."""
    return _canonical(gin.operative_config_str)


def _files(chosen: Mapping[str, Any], root: Path) -> list[Path]:
    found = []
    for name in chosen.get("gin") or []:
        if not (root / name).is_file():
            have = [str(p.relative_to(root)) for p in (root / "gin").rglob("*.gin")]
            raise ConfigError(f"gin file '{name}' does not exist{hint(str(name), have)}")
        found.append(root / name)
    return found


def _imports(file: Path, root: Path) -> dict[str, str]:
    """Module alias -> import line of a .gin file and what it includes; only allowed packages may be imported."""
    parsed: dict[str, str] = {}
    with file.open() as text:
        for statement in gin_config.config_parser.ConfigParser(text, _Names()):
            if isinstance(statement, gin_config.config_parser.ImportStatement):
                if statement.module.startswith("__gin__"):
                    continue
                if statement.module.split(".")[0] not in ALLOWED:
                    raise ConfigError(f"{file}: may not import '{statement.module}'; allowed are {', '.join(ALLOWED)}")
                parsed[statement.bound_name()] = statement.format()
            elif isinstance(statement, gin_config.config_parser.IncludeStatement):
                parsed |= _imports(root / statement.filename, root)
    return parsed


def _parse(work: Callable[[], object], origin: str) -> None:
    """Run gin's parser; what it raises for wrong input becomes a ConfigError with its origin."""
    try:
        work()
    except (ValueError, SyntaxError, NameError, AttributeError, ImportError, OSError, TypeError) as error:
        raise ConfigError(f"{origin}: {str(error).strip().splitlines()[0]}") from None


def _override(argument: str) -> Binding:
    """``name.param=value``: a gin value, or a plain string."""
    key, equals, text = argument.partition("=")
    origin = f"command line '{argument}'"
    if not equals or not key:
        raise ConfigError(f"{origin}: expected name.param=value")
    words = {"true": "True", "false": "False", "null": "None"}
    text = words.get(text.strip(), text.strip())
    try:
        gin_config.config_parser.ConfigParser(text, _Names()).parse_value()
    except SyntaxError:
        text = repr(text)
    return Binding(origin, key.strip(), text)


def _checked(binding: Binding, modules: Mapping[str, str], optional: bool) -> bool:
    """Check name, parameter and type; False if an optional (common) binding means nothing to this stage."""
    _, target, parameter = _split(binding.key, modules)
    if target is None:
        if parameter in _macros() or optional:
            return parameter in _macros()
        raise ConfigError(f"{binding.origin}: no macro is called '{parameter}'{hint(parameter, _macros())}")
    function = _find(target, modules)
    if function is None:
        if optional:
            return False
        name = ".".join(target)
        raise ConfigError(f"{binding.origin}: nothing configurable is called '{name}'{hint(name, _names(modules))}")
    parameters = inspect.signature(function).parameters
    if parameter not in parameters:
        name = ".".join(target)
        raise ConfigError(f"{binding.origin}: {name} has no parameter '{parameter}'{hint(parameter, parameters)}")
    _check_type(function, parameter, binding)
    return True


def _find(target: list[str], modules: Mapping[str, str]) -> Any:
    """The function or class that a dotted name means, or None."""
    alias, *names = target
    if alias not in modules or not names:
        return None
    found = _module(modules[alias])
    for name in names:
        found = getattr(found, name, None)
    return found


def _check_type(function: Any, parameter: str, binding: Binding) -> None:
    """Compare a literal value with the parameter's annotation; references and macros are not literals."""
    try:
        value = gin_config.config_parser.ConfigParser(binding.text, _Names()).parse_value()
    except SyntaxError as error:
        raise ConfigError(f"{binding.origin}: cannot parse {binding.text}: {error.msg}") from None
    if isinstance(value, _Name):
        return
    wanted = get_type_hints(function.__init__ if inspect.isclass(function) else function).get(parameter, Any)
    if not any(is_bearable(v, wanted, conf=_TOWER) for v in (value, tuple(value) if isinstance(value, list) else value)):
        expected = getattr(wanted, "__name__", None) if not hasattr(wanted, "__args__") else None
        expected = expected or str(wanted).replace("typing.", "")
        raise ConfigError(f"{binding.origin}: {parameter} expects {expected}, got {value!r} ({type(value).__name__})")


class _Name(str):
    """A reference or macro that was read but not looked up."""


class _Names(gin_config.config_parser.ParserDelegate):
    """Reads a text without importing or resolving anything."""

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> _Name:
        return _Name(scoped_name)

    def macro(self, scoped_name: str) -> _Name:
        return _Name(scoped_name)


def _split(key: str, modules: Mapping[str, str]) -> tuple[list[str], list[str] | None, str]:
    """Scopes, configurable (module alias first; None for a macro) and parameter of a dotted key."""
    *scopes, rest = key.split("/")
    parts = rest.split(".")
    while len(parts) > 3 and parts[0] not in modules:
        scopes.append(parts.pop(0))
    return scopes, parts[:-1] or None, parts[-1]


def _config_key(key: str, modules: Mapping[str, str]) -> tuple[str, str, str]:
    """gin's own key of a binding: scope, selector, parameter."""
    scopes, target, parameter = _split(key, modules)
    if target is None:
        return (parameter, "gin.macro", "value")
    function = _module(modules[target[0]])
    return ("/".join(scopes), ".".join([function.__name__, *target[1:]]), parameter)


def _module(line: str) -> Any:
    """The module that an import line binds."""
    words = line.split()
    return importlib.import_module(f"{words[1]}.{words[3]}" if words[0] == "from" else words[1])


def _macros() -> list[str]:
    return [scope for scope, selector in gin_config._CONFIG if selector == "gin.macro"]


def _names(modules: Mapping[str, str]) -> list[str]:
    """Everything that the imports make configurable."""
    return [
        f"{alias}.{name}"
        for alias, line in modules.items()
        for name, value in vars(_module(line)).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == _module(line).__name__
    ]


def _prune(root: str) -> set[tuple[str, str, str]]:
    """Drop what the root configurable cannot reach through references and macros; returns the kept bindings."""
    config = gin_config._CONFIG
    queue: list[tuple[tuple[str, ...], str]] = [((), root)]
    seen: set[tuple[tuple[str, ...], str]] = set()
    reached: set[tuple[str, str]] = set()
    while queue:
        call = queue.pop()
        if call in seen:
            continue
        seen.add(call)
        scopes, selector = call
        for key in [("/".join(scopes[:i]), selector) for i in range(len(scopes) + 1)]:
            if key in config:
                reached.add(key)
                for reference in gin_config.iterate_references(config[key]):
                    is_macro = reference.configurable.selector == "gin.macro"
                    outer = () if is_macro else scopes  # what a call makes runs within the call's scopes
                    queue.append(((*outer, *reference.scopes), reference.configurable.selector))
    for key in [key for key in config if key not in reached]:
        del config[key]
    return {(scope, selector, name) for (scope, selector), values in config.items() for name in values}


def _check_required() -> None:
    """Raise ConfigError if a binding still holds gin.REQUIRED."""
    for (scope, selector), values in gin_config._CONFIG.items():
        for name, value in values.items():
            if value is gin.REQUIRED:
                raise ConfigError(f"{scope + '/' if scope else ''}{selector}.{name} is required; bind it in params.yaml")


def _canonical(text: Callable[..., str]) -> str:
    """gin's text with one binding a line, without its comments (their width follows the line length)."""
    lines = [line for line in text(max_line_length=1_000_000).splitlines() if line and not line.startswith("#")]
    used = "\n".join(line for line in lines if not line.startswith("from "))
    kept = [line for line in lines if not line.startswith("from ") or _is_used(line, used)]
    return "\n".join(kept) + "\n"


def _is_used(import_line: str, text: str) -> bool:
    name = import_line.split()[-1]
    return name == "dynamic_registration" or re.search(rf"(^|[^\w.]){name}\.", text, re.MULTILINE) is not None
