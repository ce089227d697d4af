"""Whether a setting's value fits the annotation of the parameter that it reaches. The only door to ``beartype``."""

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from beartype import BeartypeConf
from beartype.door import is_bearable

from components.ranges import Range, breach, stated

_TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float, as in the language's own typing rules


def annotation(function: Any, parameter: str, *, ranges: bool = False) -> Any:
    """The annotation of a parameter, with the range that it states or without; Any if it has none."""
    constructor = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    return _hints(constructor, ranges).get(parameter, Any)


@cache
def _hints(function: Any, ranges: bool) -> dict[str, Any]:
    """Annotations of a function, evaluated once: every stage asks for the same."""
    return typing.get_type_hints(function, include_extras=ranges)


def broken_range(value: Any, function: Any, parameter: str) -> Range | None:
    """Find the range of a parameter that a value of its type breaks."""
    return breach(value, annotation(function, parameter, ranges=True))


def range_text(function: Any, parameter: str) -> str:
    """Write the range of a parameter as people say it; "" if it states none."""
    return " or ".join(map(str, stated(annotation(function, parameter, ranges=True))))


def fits(value: Any, expected: Any) -> bool:
    """Whether ``value`` is what ``expected`` says.

    Stricter than Python in two ways that hide mistakes: a bool is not a number, a word is not a list of letters. A list may stand
    for a tuple (YAML has no tuples).

    >>> fits(3, float), fits(True, int), fits("refiner", list[str]), fits([4, 8], tuple[int, int])
    (True, False, False, True)
    """
    parts = _alternatives(expected)
    if Any in parts:
        return True
    if isinstance(value, bool):
        return bool in parts or any(value in typing.get_args(p) for p in parts if typing.get_origin(p) is Literal)
    parts = [part for part in parts if not getattr(part, "_is_protocol", False)]  # no literal is an object with methods
    if isinstance(value, str):
        parts = [p for p in parts if p is str or typing.get_origin(p) is Literal]
    forms = (value, _as_tuples(value))
    return any(is_bearable(form, part, conf=_TOWER) for part in parts for form in forms)


def coerced(value: Any, expected: Any) -> Any:
    """Coerce a value that fits: tuples where tuples are wanted and lists where sequences are, however deep.

    >>> coerced({"a": [1, [2, 3]]}, dict[str, tuple[int, list[int]]])
    {'a': (1, [2, 3])}
    """
    for part in _alternatives(expected):
        origin, arguments = typing.get_origin(part) or part, typing.get_args(part)
        if isinstance(value, dict) and origin in (dict, Mapping):
            return {key: coerced(item, (arguments or (Any, Any))[1]) for key, item in value.items()}
        if isinstance(value, list | tuple) and origin is tuple:
            kinds = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments or (Any,) * len(value)
            return tuple(map(coerced, value, kinds)) if len(kinds) == len(value) else value
        if isinstance(value, list | tuple) and origin in (list, Sequence, Iterable):
            return [coerced(item, (arguments or (Any,))[0]) for item in value]
    return value


def _as_tuples(value: Any) -> Any:
    """The value with tuples for its lists, however deep: YAML has no tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    return {key: _as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def takes_reference(expected: Any, made: Any, evaluated: bool) -> bool:
    """Whether a parameter may hold a reference: ``@f`` where a callable is wanted, ``@C()`` where its result is.

    What is called must say what it returns: a setting never calls something whose result nobody could use.

    Args:
        expected: the annotation.
        made: the function or class that is referred to.
        evaluated: written with parentheses.
    """
    parts = _alternatives(expected)
    if Any in parts:
        return True
    result = made if isinstance(made, type) else _hints(made, False).get("return", Any)
    if not evaluated:
        results = [(typing.get_args(part) or [..., Any])[-1] for part in parts if _is_callable(part)]
        parts = [part for expected in results for part in _alternatives(expected)]
    return result is not Any and any(_provides(result, part) for part in parts)


def items_with_annotations(value: list[Any] | tuple[Any, ...] | dict[Any, Any], expected: Any) -> list[list[tuple[Any, Any]]]:
    """For every container type that ``expected`` allows: (annotation, item) of each item.

    >>> items_with_annotations([1, 2], list[int] | tuple[int, str])
    [[(<class 'int'>, 1), (<class 'int'>, 2)], [(<class 'int'>, 1), (<class 'str'>, 2)]]
    """
    pairings = []
    for part in _alternatives(expected):
        origin, arguments = typing.get_origin(part) or part, typing.get_args(part)
        if isinstance(value, dict):
            if origin in (dict, Mapping):
                key, item = arguments or (Any, Any)
                pairings.append([(key, k) for k in value] + [(item, v) for v in value.values()])
        elif origin is tuple and arguments[-1:] != (...,):
            pairings += [list(zip(arguments, value, strict=True))] if len(arguments) == len(value) else []
        elif origin in (list, tuple, Sequence, Iterable):
            pairings.append([((arguments or (Any,))[0], item) for item in value])
    return pairings


def describe(expected: Any) -> str:
    """An annotation as people write it.

    >>> describe(int), describe(Literal["fp32", "bf16"]), describe(float | None)
    ('int', "'fp32' or 'bf16'", 'float or None')
    """
    if isinstance(expected, type) and not typing.get_args(expected):
        return "None" if expected is type(None) else expected.__name__
    if typing.get_origin(expected) is Literal:
        return " or ".join(map(repr, typing.get_args(expected)))
    if len(parts := _alternatives(expected)) > 1:
        return " or ".join(map(describe, parts))
    if _is_callable(expected):
        return "Callable (a reference such as '@module.name')"
    return str(expected).replace("typing.", "").replace("collections.abc.", "")


def _alternatives(expected: Any) -> list[Any]:
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return [part for option in typing.get_args(expected) for part in _alternatives(option)]
    return [expected]


def _is_callable(part: Any) -> bool:
    return typing.get_origin(part) is Callable or part is Callable


def _provides(result: Any, part: Any) -> bool:
    """Whether something of type ``result`` may stand where ``part`` is wanted."""
    if part is Any or result == part:
        return True
    result, part = (typing.get_origin(kind) or kind for kind in (result, part))
    if not isinstance(part, type) or not isinstance(result, type):
        return False
    if getattr(part, "_is_protocol", False):
        return all(hasattr(result, name) for name in dir(part) if not name.startswith("_"))
    return issubclass(result, part) or (part is float and result is int)
