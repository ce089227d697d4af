"""params.yaml over gin files -> one checked, canonical gin text per stage. With ``ginfiles`` and ``ginstate`` the door to gin.

Later wins: preset < the stage's own .gin < ``common`` < the stage's section < command line. A nested map is a binding:
``loop: {fit: {steps: 100}}`` is ``loop.fit.steps = 100``; a leading name that no .gin file imports is a scope; a single
name in capitals is a macro. What a stage may bind is what its .gin files import; what of it reaches the stage is found by
following references from its ``run``, and everything else is dropped, so a stage's text changes only when the stage does.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import gin

from pipeline.errors import ConfigError
from pipeline.files import absence
from pipeline.settings import ginstate
from pipeline.settings.ginfiles import MACRO, Key, Namespace, Scan, parse_value, scan
from pipeline.settings.params import Binding, Params, hint

COMMAND_LINE = "command line"
UNUSED = "no stage uses this, or it is misspelt"


@dataclass(frozen=True)
class Resolved:
    """Settings of one stage, resolved and checked.

    Attributes:
        text: canonical gin text of what reaches the stage.
        claims: of what is said to several stages at once (``common``, the preset), by origin: whether it has its effect here, and
            what to say if it has none anywhere.
    """

    text: str
    claims: dict[str, tuple[bool, str]]


@dataclass(frozen=True)
class File:
    """A .gin file of a layer: the line that names it ("" for those that belong to the stage), its path, and what it would do."""

    origin: str
    path: Path
    scan: Scan


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
    layers = _files(stage, params, root)
    names = _namespace(layers)
    overrides = list(overrides)
    gin.clear_config()
    ginstate.search_only(root)
    users: dict[Key, Binding] = {}
    common: list[tuple[Key | None, Binding]] = []
    mentioned = {macro for files in layers.values() for file in files for macro in file.scan.macros}
    mentioned |= {name for files in layers.values() for file in files for _, name in file.scan.references}
    for layer in ("preset", "stage file", "common", stage, COMMAND_LINE):
        for file in layers.get(layer, []):
            _parse(partial(gin.parse_config_file, str(file.path.resolve())), str(file.path))
        for binding in _bindings(layer, params, names, overrides):
            optional = layer == "common" or (shared and layer == COMMAND_LINE)
            key = _bind(binding, names, stage, root, optional=optional)
            common += [(key, binding)] if optional else []
            if key is not None:
                users[key] = binding
                mentioned |= {*parse_value(binding.text).macros, *parse_value(binding.text).references}
    used = ginstate.prune(f"stages.{stage}.run")
    required = [(key, binding.origin, binding.key) for key, binding in users.items() if (key, binding) not in common]
    required += [(names.key(s.key), s.origin, s.key) for file in layers[stage] for s in file.scan.bindings]
    for key, origin, name in required:
        if key not in used:
            what = f"'{name}' is valid, but nothing that stage {stage} builds uses it"
            raise ConfigError(f"{origin}: {what}{ginstate.why(key, used)}")
    in_files = {names.key(s.key) for files in layers.values() for f in files for s in (*f.scan.included, *f.scan.bindings)}
    ginstate.check_values(users)
    ginstate.check_calls(f"stages.{stage}.run", users, in_files)
    claims = {binding.origin: (key in used, UNUSED) for key, binding in common}
    claims |= {s.origin: (names.key(s.key) in used, UNUSED) for file in layers["common"] for s in file.scan.bindings}
    return Resolved(ginstate.canonical(gin.config_str), claims | _preset_claims(layers, names, used, mentioned))


def resolve_all(stages: Iterable[str], params: Params, root: Path = Path(), overrides: Sequence[str] = ()) -> dict[str, str]:
    """Every stage's text; ``overrides`` go to every stage that they mean something to.

    Raises:
        ConfigError: every mistake that was found in any stage, one a line; or something meant for several stages that none uses.
    """
    texts, errors, claims = {}, [], dict[str, tuple[bool, str]]()
    for stage in stages:
        try:
            resolved = resolve(stage, params, overrides, root, shared=True)
        except ConfigError as error:
            errors.append(str(error))
            continue
        texts[stage] = resolved.text
        claims |= {origin: claim for origin, claim in resolved.claims.items() if claim[0] or origin not in claims}
    if not errors:
        errors = [f"{origin}: {complaint}" for origin, (works, complaint) in claims.items() if not works]
    if errors:
        raise ConfigError("\n       ".join(dict.fromkeys(errors)))
    return texts


def _files(stage: str, params: Params, root: Path) -> dict[str, list[File]]:
    """The .gin files of each layer, read but not executed."""
    named = {
        "preset": [("", _preset(params, root))],
        "stage file": [("", root / "gin" / f"{stage}.gin")],
        **{layer: [(origin, root / path) for origin, path in params.files(layer)] for layer in ("common", stage)},
    }
    layers: dict[str, list[File]] = {layer: [] for layer in named}
    for layer, files in named.items():
        for origin, path in files:
            try:
                layers[layer].append(File(origin, path, scan(path, root)))
            except ConfigError as error:
                have = [str(p.relative_to(root)) for p in (root / "gin").rglob("*.gin")]
                missing = "" if path.is_file() else hint(str(path).removeprefix(f"{root}/"), have)
                raise ConfigError(f"{origin + ': ' if origin else ''}{error}{missing}") from None
    return layers


def _namespace(layers: Mapping[str, list[File]]) -> Namespace:
    """What the files import; every name that they use must be among it."""
    scans = [file.scan for files in layers.values() for file in files]
    names = Namespace({alias: line for each in scans for alias, line in each.imports.items()})
    for each in scans:
        for origin, name in each.names:
            names.check(origin, name)
        for origin, name in each.references:
            names.check(origin, name, reference=True)
    return names


def _preset_claims(
    layers: Mapping[str, list[File]], names: Namespace, used: set[Key], mentioned: set[str]
) -> dict[str, tuple[bool, str]]:
    """Of a preset: something must use its macros and refer to what it binds, and no stage's own file may override it."""
    claims = {}
    statements = [s for file in layers["preset"] for s in (*file.scan.included, *file.scan.bindings)]
    macros = frozenset(s.key for s in statements if names.key(s.key)[1] == MACRO)
    later = {names.key(s.key) for file in layers["stage file"] for s in (*file.scan.included, *file.scan.bindings)}
    for s in statements:
        key = names.key(s.key)
        if key[1] == MACRO:
            claims[s.origin] = s.key in mentioned, f"nothing uses the macro '{s.key}'{_nearest_macro(s.key, macros)}"
        else:
            name = s.key.rpartition(".")[0]
            works = key not in later if key in used else any(reference.endswith(name) for reference in mentioned)
            why = f"nothing refers to '{name}', or the stage's own gin file sets it afterwards"
            claims[s.origin] = works, f"'{s.key}' has no effect: {why}; bind it in params.yaml, or set the macro that stands there"
    return claims


@cache
def _nearest_macro(name: str, macros: frozenset[str]) -> str:
    """The hint for a macro that nothing uses: looked for once and not for every stage, which took a tenth of configure's time."""
    return hint(name, macros - {name})


def _bindings(layer: str, params: Params, names: Namespace, overrides: Iterable[str]) -> list[Binding]:
    if layer == COMMAND_LINE:
        bindings = [_override(argument) for argument in overrides]
        twice = [binding for i, binding in enumerate(bindings) if binding.key in [earlier.key for earlier in bindings[:i]]]
        if twice:
            raise ConfigError(f"{twice[0].origin}: '{twice[0].key}' is given twice")
        return bindings
    return [] if layer in ("preset", "stage file") else params.bindings(layer, names.is_parameter)


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


def argument(selector: str, parameter: str) -> Any:
    """The value that gin would hand to a parameter, references resolved."""
    return copy.deepcopy(gin.query_parameter(f"{selector}.{parameter}"))  # gin resolves references when they are copied


def stage_function(stage: str) -> Callable[[], None]:
    """The stage's ``run`` with its parameters bound."""
    function: Callable[[], None] = gin.get_configurable(f"stages.{stage}.run")
    return function


def _preset(params: Params, root: Path) -> Path:
    folder = root / "gin" / "presets"
    file = folder / f"{params.preset}.gin"
    if not re.fullmatch(r"[\w-]{1,100}", params.preset) or not file.is_file():
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} {absence(folder, 'folder')}; run from the project's folder, which holds gin/ and params.yaml"
            )
        have = [p.stem for p in folder.glob("*.gin") if p.stem != "defaults"]
        raise ConfigError(f"{params.preset_line()}: unknown preset '{params.preset[:100]}'{hint(params.preset[:100], have)}")
    return file


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
    for reference in value.references:
        names.check(binding.origin, reference, reference=True)
    for macro in value.macros:
        if macro not in (macros := ginstate.macros()) and macro != "gin.REQUIRED":
            raise ConfigError(f"{binding.origin}: no macro is called '{macro}'{hint(macro, macros)}")
    key = "/".join((*scopes, ".".join((*target, parameter))))
    _parse(partial(gin.parse_config, f"{names.header}{key} = {binding.text}"), binding.origin)
    return names.key(binding.key)


def _unknown(target: tuple[str, ...], parameter: str, names: Namespace, stage: str, root: Path) -> str:
    """What is wrong with a key; "" if it exists."""
    if not target:
        macros = ginstate.macros()
        return "" if parameter in macros else f"no macro is called '{parameter}'{hint(parameter, macros)}"
    name, function = ".".join(target), names.find(target)
    if function is None:
        elsewhere = "" if target[0] in names.lines else _elsewhere(target, root)
        if elsewhere:
            return f"stage {stage} builds no {name}; it is bound under {elsewhere} (or in common)"
        return f"nothing configurable is called '{name}'{hint(name, names.names())}"
    parameters = inspect.signature(function).parameters
    return "" if parameter in parameters else f"{name} has no parameter '{parameter}'{hint(parameter, parameters)}"


def _elsewhere(target: tuple[str, ...], root: Path) -> str:
    """The stages whose own gin file imports what is named."""
    imports = {file.stem: scan(file, root).imports for file in sorted((root / "gin").glob("*.gin"))}
    return " or ".join(stage for stage, lines in imports.items() if stage in lines and Namespace(lines).find(target))
