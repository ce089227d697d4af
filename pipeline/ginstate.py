"""gin's current configuration: what of it a root can reach, whether the values fit, and its canonical text.

gin's private attributes are used here and nowhere else; the library is pinned, and tests/pipeline/test_ginstate.py fails loudly
on another version.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gin import config as gin_config

from pipeline.errors import ConfigError
from pipeline.params import Binding, hint
from pipeline.typecheck import annotation, describe, fits, takes_reference

Key = tuple[str, str, str]  # scope, selector, parameter: gin's own key of a binding
MACRO = "gin.macro"
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


def prune(root: str) -> set[Key]:
    """Keep what the root configurable can use and drop the rest; returns what is kept.

    A call runs within the scopes of what called it; of several bindings of one parameter the one of the longest scope wins.
    """
    config = gin_config._CONFIG
    queue: list[tuple[tuple[str, ...], str]] = [((), root)]
    calls: set[tuple[tuple[str, ...], str]] = set()
    used: set[Key] = set()
    while queue:
        call = queue.pop()
        if call in calls:
            continue
        calls.add(call)
        scopes, selector = call
        if len(scopes) > DEEPEST:
            raise ConfigError(f"'{selector}' refers to itself through scopes {'/'.join(scopes[:3])}/...")
        winners: dict[str, Key] = {}
        for scope in ("/".join(scopes[:i]) for i in range(len(scopes) + 1)):
            winners |= {parameter: (scope, selector, parameter) for parameter in config.get((scope, selector), {})}
        used |= set(winners.values())
        for scope, _, parameter in winners.values():
            for reference in gin_config.iterate_references({"": config[scope, selector][parameter]}):
                outer = () if reference.configurable.selector == MACRO else scopes
                queue.append(((*outer, *reference.scopes), reference.configurable.selector))
    for scope, selector in list(config):
        kept = {name: value for name, value in config[scope, selector].items() if (scope, selector, name) in used}
        config[scope, selector] = kept
        if not kept:
            del config[scope, selector]
    return used


def why(key: Key, used: set[Key]) -> str:
    """Why a valid binding has no effect, as far as it can be told."""
    scope, selector, parameter = key
    if selector == MACRO:
        return ""
    stronger = [s for s, sel, name in used if (sel, name) == (selector, parameter) and s != scope and s.startswith(scope)]
    if stronger:
        return f": '{stronger[0]}/{selector.split('.', 1)[-1]}.{parameter}' is more specific and wins"
    entered = sorted({s for s, sel, _ in used if s and sel != MACRO})
    if scope and scope not in entered:
        return f": scope '{scope}' is never entered; scopes in use: {', '.join(entered) or 'none'}"
    return ""


def check_values(users: dict[Key, Binding]) -> None:
    """Compare every value that reaches a parameter with its annotation, whoever set it and through whichever macro."""
    for (scope, selector), values in gin_config._CONFIG.items():
        if selector == MACRO:
            continue
        function = wrapped(selector)
        for parameter, value in values.items():
            name = f"{selector.split('.', 1)[-1]}.{parameter}"
            first = (scope, selector, parameter)
            source, value = _through_macros(first, value, users[first].origin if first in users else name)
            origin = users[source].origin if source in users else f"gin files, {name}"
            wanted = annotation(function, parameter)
            if not isinstance(value, gin_config.ConfigurableReference):
                good = fits(value, wanted) or _holds_references(value)
                got = f"{value!r} ({type(value).__name__})"
            elif repr(value) == "%gin.REQUIRED":
                raise ConfigError(f"{name} is required; bind it in params.yaml or on the command line")
            else:
                good = takes_reference(wanted, value.configurable.wrapped, value.evaluate)
                got = repr(value)
            if not good:
                raise ConfigError(f"{origin}: {name} expects {describe(wanted)}, got {got}")


def _through_macros(key: Key, value: Any, origin: str) -> tuple[Key, Any]:
    """The value behind a chain of macros, and the key that holds it."""
    seen: list[Key] = []
    while isinstance(value, gin_config.ConfigurableReference) and value.configurable.selector == MACRO:
        key = ("/".join(value.scopes), MACRO, "value")
        if key in seen:
            raise ConfigError(f"{origin}: macro '{key[0]}' refers to itself")
        seen.append(key)
        held = gin_config._CONFIG.get((key[0], MACRO))
        if held is None:
            raise ConfigError(f"{origin}: no macro is called '{key[0]}'{hint(key[0], macros())}")
        value = held["value"]
    return key, value


def _holds_references(value: Any) -> bool:
    """Whether a container holds references: its items cannot be compared before they are built."""
    return isinstance(value, list | tuple | dict) and next(gin_config.iterate_references({"": value}), None) is not None


def canonical(text: Callable[..., str]) -> str:
    """gin's text with one binding a line, its comments (their width follows the line length) and unused imports left out."""
    lines = [line for line in text(max_line_length=1_000_000).splitlines() if line and not line.startswith("#")]
    used = "\n".join(line for line in lines if not line.startswith("from "))
    return "\n".join(line for line in lines if not line.startswith("from ") or _is_used(line, used)) + "\n"


def _is_used(import_line: str, text: str) -> bool:
    name = import_line.split()[-1]
    return name == "dynamic_registration" or re.search(rf"(^|[^\w.]){name}\.", text, re.MULTILINE) is not None


def wrapped(selector: str) -> Any:
    """The function or class behind one of gin's names."""
    return gin_config._REGISTRY[selector].wrapped


def reached(root: str) -> list[tuple[str, Any, dict[str, str]]]:
    """What the current configuration builds, root first: name, function or class, and its bound parameters as text."""
    found = []
    config = gin_config._CONFIG
    for scope, selector in sorted(config, key=lambda key: (key[1] != root, key)):
        if selector != MACRO:
            name = f"{scope}/{selector.split('.', 1)[-1]}" if scope else selector.split(".", 1)[-1]
            values = {}
            for parameter, value in config[scope, selector].items():
                _, behind = _through_macros((scope, selector, parameter), value, name)
                values[parameter] = repr(value) if behind is value else f"{behind!r} (from {value!r})"
            found.append((name, wrapped(selector), values))
    return found
