"""gin's current configuration: what of it a root can reach, and whether the values fit.

gin's private attributes are used here and nowhere else: the pin is exact, and test_ginstate.py fails loudly on another version.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gin import config as gin_config

from pipeline.errors import ConfigError
from pipeline.settings import typecheck
from pipeline.settings.ginfiles import MACRO, Key
from pipeline.settings.given import GIVEN
from pipeline.settings.params import Binding, hint
from pipeline.settings.typecheck import annotation, broken_range, coerced, describe, fits, items_with_annotations

DEEPEST = 20  # scopes within scopes; more is a circle


def macros() -> list[str]:
    """Names of all macros that are set."""
    return [scope for scope, selector in gin_config._CONFIG if selector == MACRO]


def is_bound(selector: str) -> bool:
    """Whether the configuration binds a configurable."""
    return any(key[1] == selector for key in gin_config._CONFIG)


def search_only(root: Path) -> None:
    """Let gin find files in ``root`` and nowhere else: what was checked is then what is read."""
    gin_config._LOCATION_PREFIXES[:] = [str(root.resolve())]


@dataclass(frozen=True)
class Built:
    """A function or class as the current configuration calls it.

    Attributes:
        scopes: the scopes of the call, outermost first.
        selector: gin's full name of what is called.
        bindings: parameter -> key of the binding that reaches it.
        evaluated: called by gin itself (``@C()``), with nothing but its bindings.
    """

    scopes: tuple[str, ...]
    selector: str
    bindings: dict[str, Key]
    evaluated: bool

    @property
    def name(self) -> str:
        """Write the name as a user does: ``scope/module.name``."""
        return "/".join((*self.scopes, name_of(self.selector)))


def built(root: str) -> list[Built]:
    """List everything that ``root`` calls, itself and the macros included, in an order that the configuration alone decides.

    A call runs within the scopes of what called it; of several bindings of one parameter the one of the longest scope wins. Scopes
    that no binding names are left out: they change nothing.

    Raises:
        ConfigError: a reference leads back to itself through ever more scopes.
    """
    config = gin_config._CONFIG
    queue: list[tuple[tuple[str, ...], str, bool]] = [((), root, False)]
    calls: dict[tuple[tuple[str, ...], str, bool], Built] = {}
    named = {name for scope, selector in config if selector != MACRO for name in scope.split("/")}
    while queue:
        scopes, selector, evaluated = call = queue.pop()
        if call in calls:
            continue
        if len(scopes) > DEEPEST:
            raise ConfigError(f"'{selector}' refers to itself through scopes {'/'.join(scopes[:3])}/...")
        winners: dict[str, Key] = {}
        for scope in ("/".join(scopes[:i]) for i in range(len(scopes) + 1)):
            winners |= {parameter: (scope, selector, parameter) for parameter in config.get((scope, selector), {})}
        calls[call] = Built(scopes, selector, winners, evaluated)
        if selector == MACRO:
            continue  # what it stands for was called by whoever named it
        for scope, _, parameter in winners.values():
            for reference in _references(config[scope, selector][parameter]):
                entered = [*scopes, *reference.scopes]
                inner = reference.scopes if _is_macro(reference) else [name for name in entered if name in named]
                queue.append((tuple(inner), reference.configurable.selector, reference.evaluate))
    return sorted(calls.values(), key=lambda call: (call.selector != root, call.scopes, call.selector))


def _references(value: Any, depth: int = 0) -> Iterator[Any]:
    """References within a value: macros, and what they stand for, which runs within the scopes of who named them."""
    for reference in gin_config.iterate_references({"": value}):
        yield reference
        if _is_macro(reference) and depth < DEEPEST:
            yield from _references(gin_config._CONFIG.get(("/".join(reference.scopes), MACRO), {}), depth + 1)


def arguments(root: str, selector: str, names: Sequence[str]) -> dict[str, Any] | None:
    """Give parameters of the first ``selector`` that ``root`` calls, references resolved and defaults included, or None."""
    calls = [call for call in built(root) if call.selector == selector]
    if not calls:
        return None
    signature, bindings = inspect.signature(wrapped(selector)).parameters, calls[0].bindings
    keys = {name: bindings.get(name) for name in names}
    return {
        name: signature[name].default if key is None else copy.deepcopy(gin_config._CONFIG[key[:2]][name])  # which resolves them
        for name, key in keys.items()
    }


@contextmanager
def within(root: str, parameter: str) -> Iterator[dict[str, Any]]:
    """Enter the scopes in which the function that ``root`` gets as ``parameter`` will run; gives what is bound for it there."""
    key = ("", root, parameter)
    _, reference = _through_macros(key, gin_config._CONFIG[key[:2]][parameter], f"{name_of(root)}.{parameter}")
    with gin_config.config_scope(list(reference.scopes)):
        yield gin_config.get_bindings(reference.configurable.selector)


def prune(root: str) -> set[Key]:
    """Keep what the root configurable can use and drop the rest; returns what is kept."""
    config = gin_config._CONFIG
    used = {key for call in built(root) for key in call.bindings.values() if key[1:] not in GIVEN.get(root, {})}
    for scope, selector in list(config):
        reached = {name: value for name, value in config[scope, selector].items() if (scope, selector, name) in used}
        config[scope, selector] = reached
        if not reached:
            del config[scope, selector]
    return used


def why(root: str, key: Key, used: set[Key]) -> str:
    """Why a valid binding has no effect, as far as it can be told."""
    scope, selector, parameter = key
    if selector == MACRO:
        return ""
    if key[1:] in GIVEN.get(root, {}):
        return f": {GIVEN[root][key[1:]]}"
    stronger = [s for s, sel, name in used if (sel, name) == (selector, parameter) and s != scope and s.startswith(scope)]
    if stronger:
        return f": '{stronger[0]}/{name_of(selector)}.{parameter}' is more specific and wins"
    entered = sorted({s for s, sel, _ in used if s and sel != MACRO})
    if scope and scope not in entered:
        return f": scope '{scope}' is never entered; scopes in use: {', '.join(entered) or 'none'}"
    return ""


def check_calls(root: str, users: Mapping[Key, Binding], in_files: set[Key]) -> None:
    """Compare what is called with what it needs, under what ``users`` set and .gin files bind (``in_files``).

    Raises:
        ConfigError: gin calls something without all that it needs, or a user binds what the stage gives.
    """
    files = {(selector, parameter) for _, selector, parameter in in_files}
    for call in built(root):
        if call.selector in (root, MACRO):
            continue
        ours = call.selector.split(".")[0] in ("components", "pipeline")
        for parameter in inspect.signature(wrapped(call.selector)).parameters.values():
            if parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            name, key = f"{call.name}.{parameter.name}", call.bindings.get(parameter.name)
            if call.evaluated and key is None:
                raise ConfigError(f"{name} is required; bind it in params.yaml or on the command line")
            if ours and key is not None and key in users and not call.evaluated and (call.selector, parameter.name) not in files:
                raise ConfigError(f"{users[key].origin}: {name} is given by the stage; a setting of it has no effect")


def check_stored(root: str) -> None:
    """Check a configuration that was written before as one that is resolved: values, what is required, and that all has an effect.

    Raises:
        ConfigError: something is of the wrong type, is missing, or reaches nothing.
    """
    check_values({})
    check_calls(root, {}, set())
    bound = {(*scoped, parameter) for scoped, values in gin_config._CONFIG.items() for parameter in values}
    used = {key for call in built(root) for key in call.bindings.values()}
    for scope, selector, parameter in sorted(bound - used):
        name = scope if selector == MACRO else f"{name_of(selector)}.{parameter}"
        raise ConfigError(f"'{name}' reaches nothing that {root} builds{why(root, (scope, selector, parameter), used)}")


def check_values(users: Mapping[Key, Binding]) -> None:
    """Compare every value that reaches a parameter with its annotation, whoever set it and through whichever macro.

    A list becomes a tuple where a tuple is wanted: YAML has none.

    Raises:
        ConfigError: a value or reference of another type or outside its range, or a required parameter without a value.
    """
    for (scope, selector), values in gin_config._CONFIG.items():
        if selector == MACRO:
            continue
        called = name_of(selector)
        for parameter, value in values.items():
            name, first = f"{called}.{parameter}", (scope, selector, parameter)
            source, value = _through_macros(first, value, users[first].origin if first in users else name)
            origin = users[source].origin if source in users else f"gin files, {name}"
            if repr(value) == "%gin.REQUIRED":
                raise ConfigError(f"{name} is required; bind it in params.yaml or on the command line")
            expected = annotation(wrapped(selector), parameter)
            if not _accepts(expected, value, origin):
                got = repr(value) if isinstance(value, gin_config.ConfigurableReference) else f"{value!r} ({type(value).__name__})"
                raise ConfigError(f"{origin}: {name} expects {describe(expected)}, got {got}")
            plain = _plain(value, source, str)
            if broken := broken_range(plain, wrapped(selector), parameter):
                raise ConfigError(f"{origin}: {name} must be {broken}, got {plain!r}")
            parameters = gin_config._CONFIG[source[:2]]
            parameters[source[2]] = coerced(parameters[source[2]], expected)


def _accepts(expected: Any, value: Any, origin: str) -> bool:
    """Whether a value fits an annotation, references and macros within containers included."""
    if _is_macro(value):
        return _accepts(expected, _through_macros(("", MACRO, ""), value, origin)[1], origin)
    if isinstance(value, gin_config.ConfigurableReference):
        made, selector = value.configurable.wrapped, value.configurable.selector
        bound = [parameter for key, values in gin_config._CONFIG.items() if key[1] == selector for parameter in values]
        if fitting := typecheck.takes_reference(expected, made, value.evaluate):
            typecheck.check_call(expected, made, name_of(selector), bound, origin, evaluated=value.evaluate)
        return fitting
    if not isinstance(value, list | tuple | dict):
        return fits(value, expected)
    return expected is Any or any(
        all(_accepts(part, item, origin) for part, item in parts) for parts in items_with_annotations(value, expected)
    )


def _through_macros(key: Key, value: Any, origin: str) -> tuple[Key, Any]:
    """The value behind a chain of macros, and the key that holds it."""
    seen: list[Key] = []
    while _is_macro(value):
        key = ("/".join(value.scopes), MACRO, "value")
        if key in seen:
            raise ConfigError(f"{origin}: macro '{key[0]}' refers to itself")
        seen.append(key)
        macro = gin_config._CONFIG.get((key[0], MACRO))
        if macro is None:
            raise ConfigError(f"{origin}: no macro is called '{key[0]}'{hint(key[0], macros())}")
        value = macro["value"]
    return key, value


def line_width() -> int:
    """Give a line that holds any binding, and no more: gin rules off each section at this width, which took time."""
    return 1000 + max((len(repr(value)) for bound in gin_config._CONFIG.values() for value in bound.values()), default=0)


def wrapped(selector: str) -> Any:
    """The function or class behind one of gin's names."""
    return gin_config._REGISTRY[selector].wrapped


def name_of(selector: str) -> str:
    """A selector as users write it: with the alias under which its module was imported."""
    name: str = gin_config.ImportManager(gin_config._IMPORTS).minimal_selector(gin_config._REGISTRY[selector])
    return name


def imports() -> list[str]:
    """The import statements of the current configuration, sorted."""
    return [statement.format() for statement in gin_config.ImportManager(gin_config._IMPORTS).sorted_imports]


def value_of(key: Key, reference: Callable[[str], Any] = str) -> tuple[Any, str]:
    """The value of a binding, and the macro that it came through ("" if none).

    Macros are replaced by what they stand for, references by ``reference(text)``, in containers too.
    """
    scope, selector, parameter = key
    value = gin_config._CONFIG[scope, selector][parameter]
    return _plain(value, key, reference), repr(value) if _is_macro(value) else ""


def _plain(value: Any, key: Key, reference: Callable[[str], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, key, reference) for item in value)
    if isinstance(value, dict):
        return {_plain(k, key, reference): _plain(item, key, reference) for k, item in value.items()}
    if _is_macro(value):
        return _plain(_through_macros(key, value, name_of(key[1]))[1], key, reference)
    if isinstance(value, gin_config.ConfigurableReference):
        name = "/".join((*value.scopes, name_of(value.configurable.selector)))
        return reference(f"@{name}{'()' if value.evaluate else ''}")
    return value


def _is_macro(value: Any) -> bool:
    return isinstance(value, gin_config.ConfigurableReference) and value.configurable.selector == MACRO
