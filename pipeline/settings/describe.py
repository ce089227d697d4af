"""Describes the settings that reach a stage, with type, value and meaning, from signatures and docstrings."""

import inspect
import re
from typing import Any

from pipeline.settings import ginstate
from pipeline.settings.ginfiles import MACRO, Key
from pipeline.settings.typecheck import annotation, describe, range_text


def settings_text(stage: str) -> str:
    """Write one line per setting of the current configuration: key, value, type, meaning."""
    lines = ["SETTINGS (name.param=value here or in params.yaml)"]
    for call in ginstate.built(f"stages.{stage}.run"):
        if call.selector == MACRO:
            continue
        function = ginstate.wrapped(call.selector)
        lines.append(f"\n{call.name}")
        meanings = argument_meanings(inspect.getdoc(function) or "")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "self":
                continue
            value = _bound(call.bindings[parameter.name]) if parameter.name in call.bindings else _default(parameter)
            kind = ", ".join(filter(None, (describe(annotation(function, parameter.name)), range_text(function, parameter.name))))
            lines.append(f"  .{parameter.name} = {value}  ({kind})  {meanings.get(parameter.name, '')}".rstrip())
    return "\n".join(lines) + "\n"


def _bound(key: Key) -> str:
    value, macro = ginstate.value_of(key)
    return f"{value!r} (from {macro})" if macro else repr(value)


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return "(given by the stage)"
    value: Any = parameter.default
    return str(getattr(value, "__name__", repr(value)))  # functions and classes by name


def argument_meanings(docstring: str) -> dict[str, str]:
    """Read the first line of every argument in a docstring's Args or Attributes section.

    >>> argument_meanings("Does.\\n\\nArgs:\\n    steps: how many.\\n        More.\\n    lr: rate; peak.\\n\\nRaises:\\n    X: y.")
    {'steps': 'how many.', 'lr': 'rate; peak.'}
    """
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^    (\w+): (.*)$", section[1], re.MULTILINE)) if section else {}
