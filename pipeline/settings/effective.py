"""Every value in effect, defaults included, as it will reach a stage: in gin's form (``config.gin``, to run again) and in that of
params.yaml (``config.yaml``, for ``dvc params diff``). Found from settings and signatures, not from what happened to be called, so
that a run that was interrupted and resumed leaves the same bytes.
"""

import hashlib
import inspect
from typing import Any

from pipeline.settings import ginstate
from pipeline.settings.canonical import only_used_imports
from pipeline.settings.ginfiles import MACRO, parse_value
from pipeline.settings.given import GIVEN
from pipeline.settings.params import dump

Settings = dict[str, dict[str, Any]]


class Source(str):
    """A value as gin source: what is no literal, such as a reference."""

    def __repr__(self) -> str:
        return str(self)


def settings(root: str) -> Settings:
    """``[scope/]module.name`` -> parameter -> value, of everything that ``root`` builds."""
    in_effect: Settings = {}
    for call in ginstate.built(root):
        if call.selector == MACRO:
            continue
        values = {}
        for name, parameter in inspect.signature(ginstate.wrapped(call.selector)).parameters.items():
            if name in call.bindings:
                values[name] = ginstate.value_of(call.bindings[name], Source)[0]
            elif _has_form(parameter.default) and (call.selector, name) not in GIVEN.get(root, {}):
                values[name] = parameter.default
        if values:
            in_effect[call.name] = values
    return in_effect


def gin_text(values: Settings) -> str:
    """Canonical gin text: imports, then one binding a line."""
    bindings = [f"{name}.{parameter} = {value!r}" for name in sorted(values) for parameter, value in sorted(values[name].items())]
    return only_used_imports([*ginstate.imports(), *bindings])


def digest(values: Settings) -> str:
    """sha256 of the gin text: what identifies a configuration."""
    return hashlib.sha256(gin_text(values).encode()).hexdigest()


def yaml_text(values: Settings) -> str:
    """The same as a nested map, as it could stand under ``bindings`` in params.yaml."""
    tree: dict[str, Any] = {}
    for name in sorted(values):
        node = tree
        for word in name.replace("/", ".").split("."):
            node = node.setdefault(word, {})
        node |= {key: _as_yaml(value) for key, value in sorted(values[name].items())}
    return dump(tree)


def _has_form(value: Any) -> bool:
    """Whether a default can be written down and read back."""
    try:
        return bool(parse_value(repr(value)).literal == value)
    except (SyntaxError, ValueError):
        return False


def _as_yaml(value: Any) -> Any:
    """Tuples as lists, references as strings: YAML has neither."""
    if isinstance(value, list | tuple):
        return [_as_yaml(item) for item in value]
    if isinstance(value, dict):
        return {_as_yaml(key): _as_yaml(item) for key, item in value.items()}
    return str(value) if isinstance(value, str) else value
