"""Whether a setting's value fits the annotation of the parameter that it reaches. The only door to ``beartype``."""

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from beartype import BeartypeConf
from beartype.door import is_bearable

from components.ranges import Range, breach, stated

_TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float, as in the language's own typing rules


def annotation(function: Any, parameter: str, *, ranges: bool = False) -> Any:
    """The annotation of a parameter, with the range that it states or without; Any if it has none."""
    constructor = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    return typing.get_type_hints(constructor, include_extras=ranges).get(parameter, Any)


def broken_range(value: Any, function: Any, parameter: str) -> Range | None:
    """Find the range of a parameter that a value of its type breaks."""
    return breach(value, annotation(function, parameter, ranges=True))


def range_text(function: Any, parameter: str) -> str:
    """Write the range of a parameter as people say it; "" if it states none."""
    return " or ".join(map(str, stated(annotation(function, parameter, ranges=True))))


def fits(value: Any, wanted: Any) -> bool:
    """Whether ``value`` is what ``wanted`` says.

    Stricter than Python in two ways that hide mistakes: a bool is not a number, a word is not a list of letters. A list may stand
    for a tuple (YAML has no tuples).

    >>> fits(3, float), fits(True, int), fits("refiner", list[str]), fits([4, 8], tuple[int, int])
    (True, False, False, True)
    """
    parts = _alternatives(wanted)
    if Any in parts:
        return True
    if isinstance(value, bool):
        return bool in parts or any(value in typing.get_args(p) for p in parts if typing.get_origin(p) is Literal)
    parts = [part for part in parts if not getattr(part, "_is_protocol", False)]  # no literal is an object with methods
    if isinstance(value, str):
        parts = [p for p in parts if p is str or typing.get_origin(p) is Literal]
    forms = (value, _as_tuples(value))
    return any(is_bearable(form, part, conf=_TOWER) for part in parts for form in forms)


def as_wanted(value: Any, wanted: Any) -> Any:
    """A value that fits, with tuples where tuples are wanted and lists where sequences are, however deep.

    >>> as_wanted({"a": [1, [2, 3]]}, dict[str, tuple[int, list[int]]])
    {'a': (1, [2, 3])}
    """
    for part in _alternatives(wanted):
        origin, arguments = typing.get_origin(part) or part, typing.get_args(part)
        if isinstance(value, dict) and origin in (dict, Mapping):
            return {key: as_wanted(item, (arguments or (Any, Any))[1]) for key, item in value.items()}
        if isinstance(value, list | tuple) and origin is tuple:
            kinds = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments or (Any,) * len(value)
            return tuple(map(as_wanted, value, kinds)) if len(kinds) == len(value) else value
        if isinstance(value, list | tuple) and origin in (list, Sequence, Iterable):
            return [as_wanted(item, (arguments or (Any,))[0]) for item in value]
    return value


def _as_tuples(value: Any) -> Any:
    """The value with tuples for its lists, however deep: YAML has no tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    return {key: _as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def takes_reference(wanted: Any, made: Any, evaluated: bool) -> bool:
    """Whether a parameter may hold a reference: ``@f`` where a callable is wanted, ``@C()`` where its result is.

    What is called must say what it returns: a setting never calls something whose result nobody could use.

    Args:
        wanted: the annotation.
        made: the function or class that is referred to.
        evaluated: written with parentheses.
    """
    parts = _alternatives(wanted)
    if Any in parts:
        return True
    result = made if isinstance(made, type) else typing.get_type_hints(made).get("return", Any)
    if not evaluated:
        results = [(typing.get_args(part) or [..., Any])[-1] for part in parts if _is_callable(part)]
        parts = [part for wanted in results for part in _alternatives(wanted)]
    return result is not Any and any(_provides(result, part) for part in parts)


def items_with_annotations(value: list[Any] | tuple[Any, ...] | dict[Any, Any], wanted: Any) -> list[list[tuple[Any, Any]]]:
    """For every container type that ``wanted`` allows: (annotation, item) of each item.

    >>> items_with_annotations([1, 2], list[int] | tuple[int, str])
    [[(<class 'int'>, 1), (<class 'int'>, 2)], [(<class 'int'>, 1), (<class 'str'>, 2)]]
    """
    found = []
    for part in _alternatives(wanted):
        origin, arguments = typing.get_origin(part) or part, typing.get_args(part)
        if isinstance(value, dict):
            if origin in (dict, Mapping):
                key, item = arguments or (Any, Any)
                found.append([(key, k) for k in value] + [(item, v) for v in value.values()])
        elif origin is tuple and arguments[-1:] != (...,):
            found += [list(zip(arguments, value, strict=True))] if len(arguments) == len(value) else []
        elif origin in (list, tuple, Sequence, Iterable):
            found.append([((arguments or (Any,))[0], item) for item in value])
    return found


def describe(wanted: Any) -> str:
    """An annotation as people write it.

    >>> describe(int), describe(Literal["fp32", "bf16"]), describe(float | None)
    ('int', "'fp32' or 'bf16'", 'float or None')
    """
    if isinstance(wanted, type) and not typing.get_args(wanted):
        return "None" if wanted is type(None) else wanted.__name__
    if typing.get_origin(wanted) is Literal:
        return " or ".join(map(repr, typing.get_args(wanted)))
    if len(parts := _alternatives(wanted)) > 1:
        return " or ".join(map(describe, parts))
    if _is_callable(wanted):
        return "Callable (a reference such as '@module.name')"
    return str(wanted).replace("typing.", "").replace("collections.abc.", "")


def _alternatives(wanted: Any) -> list[Any]:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return [part for option in typing.get_args(wanted) for part in _alternatives(option)]
    return [wanted]


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
