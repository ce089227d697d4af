"""params.yaml over gin files -> one checked, canonical gin text per stage. With ``ginfiles`` and ``ginstate`` the door to gin.

Later wins: preset < the stage's own .gin < ``common`` < the stage's section < command line. A nested map is a binding:
``loop: {fit: {steps: 100}}`` is ``loop.fit.steps = 100``; a leading name that no .gin file imports is a scope; a single
name in capitals is a macro. What a stage may bind is what its .gin files import; what of it reaches the stage is found by
following references from its ``run``, and everything else is dropped, so a stage's text changes only when the stage does.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gin

from pipeline.errors import ConfigError
from pipeline.files import absence
from pipeline.settings import ginstate
from pipeline.settings.canonical import canonical
from pipeline.settings.ginfiles import Key, Namespace, check_text, namespace, parse_value, scan
from pipeline.settings.given import GIVEN
from pipeline.settings.layers import UNUSED, files_of_layers, preset_claims
from pipeline.settings.params import Binding, Params, hint

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Resolved:
    """Settings of one stage, resolved and checked.

    Attributes:
        text: canonical gin text of what reaches the stage.
        claims: of what is said to several stages at once (``common``, the preset), by origin: whether it has its effect here, and
            what to say if it has none anywhere.
        reached: of what the preset binds and this stage builds or binds itself, by origin: whether the preset's value is used.
    """

    text: str
    claims: dict[str, tuple[bool, str]]
    reached: dict[str, bool]


def resolve(stage: str, params: Params, overrides: Iterable[str] = (), root: Path = Path(), *, shared: bool = False) -> Resolved:
    """Resolve and check one stage.

    Args:
        stage: its name.
        params: what ``params.read`` gave.
        overrides: ``name.param=value`` from the command line.
        root: folder that holds ``gin/``.
        shared: the overrides are said to several stages, as ``common`` is: one that means nothing to this stage is left out.

    Raises:
        ConfigError: a file, name, parameter, type or value is wrong, or a setting reaches nothing.
    """
    layers = files_of_layers(stage, params, root)
    names = namespace(file.scan for files in layers.values() for file in files)
    overrides = list(overrides)
    gin.clear_config()
    ginstate.search_only(root)
    users: dict[Key, Binding] = {}
    common: list[tuple[Key | None, Binding]] = []
    elsewhere: dict[Key, tuple[str, str]] = {}  # what refers to something that this stage does not import: origin, complaint
    mentioned = {macro for files in layers.values() for file in files for macro in file.scan.macros}
    mentioned |= {name for files in layers.values() for file in files for _, name in file.scan.references}
    for layer in ("preset", "stage file", "common", stage, COMMAND_LINE):
        for file in layers.get(layer, []):
            _parse(partial(gin.parse_config_file, str(file.path.resolve())), str(file.path))
        for binding in _bindings(layer, params, names, overrides):
            optional = layer == "common" or (shared and layer == COMMAND_LINE)
            key = _bind(binding, names, stage, root, optional=optional)
            if optional and key is not None and (complaint := _unknown_reference(binding, names)):
                elsewhere[key] = binding.origin, complaint
                continue
            common += [(key, binding)] if optional else []
            if key is not None:
                elsewhere.pop(key, None)
                users[key] = binding
                mentioned |= {*parse_value(binding.text).macros, *parse_value(binding.text).references}
    run = f"stages.{stage}.run"
    used = ginstate.prune(run)
    required = [(key, binding.origin, binding.key) for key, binding in users.items() if (key, binding) not in common]
    required += [(names.key(s.key), s.origin, s.key) for file in layers[stage] for s in file.scan.bindings]
    if wrong := [f"{origin}: {complaint}" for key, (origin, complaint) in elsewhere.items() if key in used]:
        raise ConfigError(wrong[0])
    for key, origin, name in required:
        if key not in used:
            what = f"'{name}' is valid, but nothing that stage {stage} builds uses it"
            raise ConfigError(f"{origin}: {what}{ginstate.why(run, key, used) or _elsewhere(names.split(name)[1], stage, root)}")
    in_files = {names.key(s.key) for files in layers.values() for f in files for s in (*f.scan.included, *f.scan.bindings)}
    ginstate.check_values(users)
    ginstate.check_calls(run, users, in_files)
    claims = {binding.origin: (key in used, UNUSED) for key, binding in common}
    claims |= {s.origin: (names.key(s.key) in used, UNUSED) for file in layers["common"] for s in file.scan.bindings}
    claims |= {origin: (False, complaint) for origin, complaint in elsewhere.values()}
    of_preset, reached = preset_claims(layers, names, used, mentioned, GIVEN.get(run, {}))
    return Resolved(canonical(gin.config_str, ginstate.line_width()), claims | of_preset, reached)


def resolve_all(stages: Iterable[str], params: Params, root: Path = Path(), overrides: Sequence[str] = ()) -> dict[str, str]:
    """Every stage's text; ``overrides`` go to every stage that they mean something to.

    Raises:
        ConfigError: every mistake that was found in any stage, one a line; or something meant for several stages that none uses.
    """
    texts, errors, claims, unused = {}, [], dict[str, tuple[bool, str]](), (False, UNUSED)
    reached: dict[str, bool] = {}
    for stage in stages:
        try:
            resolved = resolve(stage, params, overrides, root, shared=True)
        except ConfigError as error:
            errors.append(str(error))
            continue
        texts[stage] = resolved.text
        reached |= {origin: used or reached.get(origin, False) for origin, used in resolved.reached.items()}
        claims |= {o: claim for o, claim in resolved.claims.items() if claim[0] or claims.get(o, unused) == unused}
    if not errors:
        errors = [f"{o}: {complaint}" for o, (works, complaint) in claims.items() if not (works and reached.get(o, True))]
    if errors:
        raise ConfigError("\n       ".join(dict.fromkeys(errors)))
    return texts


def _bindings(layer: str, params: Params, names: Namespace, overrides: Iterable[str]) -> list[Binding]:
    if layer == COMMAND_LINE:
        bindings = [_override(argument) for argument in overrides]
        twice = [binding for i, binding in enumerate(bindings) if binding.key in [earlier.key for earlier in bindings[:i]]]
        if twice:
            raise ConfigError(f"{twice[0].origin}: '{twice[0].key}' is given twice")
        return bindings
    return [] if layer in ("preset", "stage file") else params.bindings(layer, names.is_parameter)


def load_text(text: str, stage: str, origin: str = "") -> None:
    """Make a canonical text the current configuration; it is read and checked before anything of it is executed.

    Args:
        text: imports and bindings, which stand alone.
        stage: whose text it is.
        origin: the file that it came from, for errors.

    Raises:
        ConfigError: it is another stage's, not a configuration, or names or imports what it may not.
    """
    origin = origin or f"configuration of stage {stage}"
    check_text(text, origin)
    gin.clear_config()
    _parse(partial(gin.parse_config, text), origin)
    _parse(gin.finalize, origin)
    if not ginstate.is_bound(f"stages.{stage}.run"):
        raise ConfigError(f"{origin} does not name stages.{stage}.run; run: dvc repro configure")


def load_file(file: Path, stage: str) -> str:
    """Make a file that configure or a stage wrote the current configuration, checked as if it had been written by hand.

    Returns:
        Its text.

    Raises:
        ConfigError: as ``load_text``; a value is of the wrong type, missing, or reaches nothing.
    """
    if not file.is_file():
        raise ConfigError(f"{file} {absence(file)}; run: dvc repro configure")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text: {error.reason}") from None
    load_text(text, stage, str(file))
    try:
        ginstate.check_stored(f"stages.{stage}.run")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return text


def bind(key: str, value: Any) -> None:
    """Set one parameter of the current configuration."""
    with gin.unlock_config():
        gin.bind_parameter(key, value)


def query(key: str) -> Any:
    """One bound parameter of the current configuration."""
    return gin.query_parameter(key)


def argument(selector: str, parameter: str) -> Any:
    """The value that gin would hand to a parameter, references resolved."""
    return copy.deepcopy(gin.query_parameter(f"{selector}.{parameter}"))  # gin resolves references when they are copied


def stage_function(stage: str) -> Callable[[], None]:
    """The stage's ``run`` with its parameters bound."""
    function: Callable[[], None] = gin.get_configurable(f"stages.{stage}.run")
    return function


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


def _bind(binding: Binding, names: Namespace, stage: str, root: Path, *, optional: bool) -> Key | None:
    """Check that the key exists and bind it; None if an optional (common) binding means nothing to this stage."""
    if not re.fullmatch(r"\w+([./]\w+)*", binding.key):
        raise ConfigError(f"{binding.origin}: a name is words with dots between them, got {binding.key!r}")
    try:
        value = parse_value(binding.text)
    except SyntaxError as error:
        raise ConfigError(f"{binding.origin}: '{binding.text[:100]}' is not a value ({error.msg})") from None
    scopes, target, parameter = names.split(binding.key)
    if wrong := _unknown(target, parameter, names, stage, root):
        if optional:
            return None
        raise ConfigError(f"{binding.origin}: {wrong}")
    if wrong := _unknown_reference(binding, names):
        if optional:
            return names.key(binding.key)  # bound where a stage can use it
        raise ConfigError(f"{binding.origin}: {wrong}")
    for macro in value.macros:
        if macro not in (macros := ginstate.macros()) and macro != "gin.REQUIRED":
            raise ConfigError(f"{binding.origin}: no macro is called '{macro}'{hint(macro, macros)}")
    key = "/".join((*scopes, ".".join((*target, parameter))))
    _parse(partial(gin.parse_config, f"{names.header}{key} = {binding.text}"), binding.origin)
    return names.key(binding.key)


def _unknown_reference(binding: Binding, names: Namespace) -> str:
    """What is wrong with what a binding refers to; "" if all of it is among what this stage's files import."""
    try:
        for reference in parse_value(binding.text).references:
            names.check(binding.origin, reference, reference=True)
    except ConfigError as error:
        return str(error).removeprefix(f"{binding.origin}: ")
    return ""


def _unknown(target: tuple[str, ...], parameter: str, names: Namespace, stage: str, root: Path) -> str:
    """What is wrong with a key; "" if it exists."""
    if not target:
        macros = ginstate.macros()
        return "" if parameter in macros else f"no macro is called '{parameter}'{hint(parameter, macros)}"
    name, function = ".".join(target), names.find(target)
    if function is None:
        if target[0] not in names.lines and (elsewhere := _elsewhere(target, stage, root)):
            return f"stage {stage} builds no {name}{elsewhere}"
        return f"nothing configurable is called '{name}'{hint(name, names.names())}"
    parameters = inspect.signature(function).parameters
    return "" if parameter in parameters else f"{name} has no parameter '{parameter}'{hint(parameter, parameters)}"


def _elsewhere(target: tuple[str, ...], stage: str, root: Path) -> str:
    """Under which stages what is named is bound: those whose own gin file imports it; "" if this stage's does, or none."""
    imports = {file.stem: scan(file, root).imports for file in sorted((root / "gin").glob("*.gin"))}
    places = [name for name, lines in imports.items() if name in lines and Namespace(lines).find(target)]
    return "" if not places or stage in places else f"; it is bound under {' or '.join(places)} (or in common)"
