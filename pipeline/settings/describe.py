"""Help of a stage: every setting that reaches it, with its type, its value and what it means, from signatures and docstrings."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from pipeline.settings import ginstate
from pipeline.settings.ginfiles import MACRO, Key
from pipeline.settings.typecheck import annotation, describe


def help_text(stage: str, flags: Sequence[str] = ()) -> str:
    """One line per setting of the current configuration: key, type, value, meaning; ``flags`` of the stage alone are named too."""
    own = "".join(f" [--{flag}]" for flag in flags)
    lines = [f"python -m stages {stage} [name.param=value ...] [--config FILE] [--out DIR] [--check] [--print-config]{own}", ""]
    first = inspect.getdoc(ginstate.wrapped(f"stages.{stage}.run")) or ""
    lines += [first.splitlines()[0], "", "Settings (bind them in params.yaml or on the command line):"]
    for call in ginstate.built(f"stages.{stage}.run"):
        if call.selector == MACRO:
            continue
        function = ginstate.wrapped(call.selector)
        lines.append(f"\n{call.name}")
        meanings = _arguments(inspect.getdoc(function) or "")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "self":
                continue
            value = _bound(call.bindings[parameter.name]) if parameter.name in call.bindings else _default(parameter)
            kind = describe(annotation(function, parameter.name))
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


def _arguments(docstring: str) -> dict[str, str]:
    """First sentences of the Args section.

    >>> _arguments("Does it.\\n\\nArgs:\\n    steps: how many.\\n        And more.\\n    lr: rate; peak.\\n\\nRaises:\\n    X: y.")
    {'steps': 'how many.', 'lr': 'rate; peak.'}
    """
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^    (\w+): (.*)$", section[1], re.MULTILINE)) if section else {}
