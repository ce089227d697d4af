"""params.yaml over gin files -> one checked, canonical gin text per stage. With ``ginfiles`` and ``ginstate`` the door to gin.

Later wins: preset < the stage's own .gin < ``common`` < the stage's section < command line. A nested map is a binding:
``loop: {fit: {steps: 100}}`` is ``loop.fit.steps = 100``; a leading name that no .gin file imports is a scope; a single
name in capitals is a macro. What a stage may bind is what its .gin files import; what of it reaches the stage is found by
following references from its ``run``, and everything else is dropped, so a stage's text changes only when the stage does.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gin

from pipeline import ginstate
from pipeline.errors import ConfigError
from pipeline.ginfiles import Namespace, parse_value, scan
from pipeline.ginstate import MACRO, Key
from pipeline.params import Binding, Params, hint


@dataclass(frozen=True)
class Resolved:
    """A stage's settings: the canonical text, and whether it uses each binding of ``common`` (by origin)."""

    text: str
    common: dict[str, bool]


def resolve(stage: str, params: Params, overrides: Iterable[str] = (), root: Path = Path()) -> Resolved:
    """Resolve and check one stage.

    Args:
        stage: its name.
        params: what ``params.read`` gave.
        overrides: ``name.param=value`` from the command line.
        root: folder that holds ``gin/``.

    Raises:
        ConfigError: a file, name, parameter, type or value is wrong, or a setting reaches nothing.
    """
    files = [("", _preset(params, root)), ("", root / "gin" / f"{stage}.gin")]
    layers = {name: [(origin, root / path) for origin, path in params.files(name)] for name in ("common", stage)}
    lines: dict[str, str] = {}
    used_names: list[tuple[str, str]] = []
    for origin, file in (*files, *layers["common"], *layers[stage]):
        try:
            scanned = scan(file, root)
            lines |= scanned.imports
            used_names += scanned.names
        except ConfigError as error:
            have = [str(p.relative_to(root)) for p in (root / "gin").rglob("*.gin")]
            missing = "" if file.is_file() else hint(str(file.relative_to(root)), have)
            raise ConfigError(f"{origin + ': ' if origin else ''}{error}{missing}") from None
    names = Namespace(lines)
    for origin, name in used_names:
        names.check(origin, name)
    gin.clear_config()
    ginstate.search_only(root)
    users: dict[Key, Binding] = {}
    common: dict[str, bool] = {}
    _read_files(files)
    for layer in ("common", stage, "command line"):
        _read_files(layers.get(layer, []))
        bindings = [_override(o) for o in overrides] if layer == "command line" else params.bindings(layer, names.is_parameter)
        for binding in bindings:
            key = _bind(binding, names, stage, layer == "common")
            if layer == "common":
                common[binding.origin] = False
            if key is not None:
                users[key] = binding
    used = ginstate.prune(f"stages.{stage}.run")
    for key, binding in users.items():
        if binding.origin in common:
            common[binding.origin] = key in used
        elif key not in used:
            what = f"'{binding.key}' is valid, but nothing that stage {stage} builds uses it"
            raise ConfigError(f"{binding.origin}: {what}{ginstate.why(key, used)}")
    ginstate.check_values(users)
    return Resolved(ginstate.canonical(gin.config_str), common)


def resolve_all(stages: Iterable[str], params: Params, root: Path = Path()) -> dict[str, str]:
    """Every stage's text.

    Raises:
        ConfigError: every mistake that was found in any stage, one a line; or a binding of ``common`` that no stage uses.
    """
    texts, errors, common = {}, [], dict[str, bool]()
    for stage in stages:
        try:
            resolved = resolve(stage, params, root=root)
        except ConfigError as error:
            errors.append(str(error))
            continue
        texts[stage] = resolved.text
        common = {origin: used or common.get(origin, False) for origin, used in resolved.common.items()}
    if not errors:
        errors = [f"{origin}: no stage uses this, or it is misspelt" for origin, used in common.items() if not used]
    if errors:
        raise ConfigError("\n       ".join(dict.fromkeys(errors)))
    return texts


def load_text(text: str, stage: str) -> None:
    """Make a canonical text the current configuration.

    Raises:
        ConfigError: it is another stage's, or not a configuration.
    """
    gin.clear_config()
    _parse(partial(gin.parse_config, text), f"configuration of stage {stage}")
    gin.finalize()
    if not ginstate.is_bound(f"stages.{stage}.run"):
        raise ConfigError(f"the configuration does not name stages.{stage}.run; run: dvc repro configure")


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
    return ginstate.canonical(gin.operative_config_str)


def _preset(params: Params, root: Path) -> Path:
    folder = root / "gin" / "presets"
    file = folder / f"{params.preset}.gin"
    if not file.is_file():
        have = [p.stem for p in folder.glob("*.gin") if p.stem != "defaults"]
        raise ConfigError(f"{params.preset_line()}: unknown preset '{params.preset}'{hint(params.preset, have)}")
    return file


def _read_files(files: Iterable[tuple[str, Path]]) -> None:
    for _, file in files:
        _parse(partial(gin.parse_config_file, str(file.resolve())), str(file))


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
    if not equals or not key.strip() or not text.strip():
        raise ConfigError(f"{origin}: expected name.param=value")
    text = {"true": "True", "false": "False", "null": "None"}.get(text.strip(), text.strip())
    try:
        parse_value(text)
    except SyntaxError:
        text = repr(text)
    return Binding(origin, key.strip(), text)


def _bind(binding: Binding, names: Namespace, stage: str, optional: bool) -> Key | None:
    """Check that the key exists and bind it; None if an optional (common) binding means nothing to this stage."""
    for reference in parse_value(binding.text)[1]:
        names.check(binding.origin, reference)
    scopes, target, parameter = names.split(binding.key)
    if not target:
        macros = ginstate.macros()
        if parameter not in macros:
            if optional:
                return None
            raise ConfigError(f"{binding.origin}: no macro is called '{parameter}'{hint(parameter, macros)}")
        _parse(partial(gin.parse_config, f"{names.header}{parameter} = {binding.text}"), binding.origin)
        return (parameter, MACRO, "value")
    name = ".".join(target)
    function = names.find(target)
    if function is None or parameter not in (parameters := inspect.signature(function).parameters):
        if optional:
            return None
        if function is None:
            raise ConfigError(f"{binding.origin}: nothing configurable is called '{name}'{hint(name, names.names())}")
        raise ConfigError(f"{binding.origin}: {name} has no parameter '{parameter}'{hint(parameter, parameters)}")
    scope = "/".join(scopes)
    key = f"{scope}/{name}.{parameter}" if scope else f"{name}.{parameter}"
    _parse(partial(gin.parse_config, f"{names.header}{key} = {binding.text}"), binding.origin)
    return (scope, names.selector(target), parameter)
