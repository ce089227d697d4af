"""Whether a setting's value fits the annotation of the parameter that it reaches. The only door to ``beartype``."""

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal

from beartype import BeartypeConf
from beartype.door import is_bearable

from components.ranges import Range, breach, stated
from pipeline.errors import ConfigError

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
    if getattr(made, "_is_protocol", False):  # it says how something is called, and is nothing that could be
        return False
    if Any in parts:
        return True
    result = made if isinstance(made, type) else _hints(made, False).get("return", Any)
    parts = [part for part in parts if not (evaluated and _is_call_protocol(part))]
    if not evaluated:
        parts = [part for expected in parts if _is_callable(expected) for part in _alternatives(_call(expected)[1])]
    return result is not Any and any(_provides(result, part) for part in parts)


def check_call(expected: Any, made: Any, name: str, bound: Collection[str], origin: str, *, evaluated: bool = False) -> None:
    """Compare a reference with how its parameter's annotation says that it will be called, if it says so.

    Args:
        expected: the annotation: ``Callable[[int], ...]``, or a protocol, whose ``__call__`` has the names of arguments.
        made: the function or class that is referred to.
        name: of it, as settings write it.
        bound: its parameters that settings give.
        origin: who refers to it, for errors.
        evaluated: written with parentheses: what it returns will be called, if that is an object of ours that can be.

    Raises:
        ConfigError: it needs more than it will be given, takes less, or something of another kind.
    """
    calls = [_call(part)[0] for part in _alternatives(expected) if _is_callable(part)]
    if evaluated:
        result = made if isinstance(made, type) else _hints(made, False).get("return", Any)
        if not (isinstance(result, type) and issubclass(result, Callable)):  # type: ignore[arg-type]
            return
        made, name, bound = partial(result.__call__, None), f"{name}()", ()  # with itself given
    for positional, named in filter(None, calls):
        signature = inspect.signature(made).parameters
        parameters = [p for p in signature.values() if p.name not in named]
        kinds = {p.kind for p in parameters}
        places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        missing = sorted(required - {*places[: len(positional)], *bound})
        if missing and not evaluated:
            raise ConfigError(f"{origin}: {name}.{missing[0]} is required; bind it in params.yaml or on the command line")
        unknown = inspect.Parameter.VAR_KEYWORD not in kinds and set(named) - set(signature)
        if missing or unknown or (len(positional) > len(places) and inspect.Parameter.VAR_POSITIONAL not in kinds):
            given = ", ".join((*(shown for shown, _ in positional), *named))
            raise ConfigError(f"{origin}: @{name} takes ({', '.join(signature)}), and is called with ({given})")
        for place, (_, kind) in zip(places, positional, strict=False):
            if _apart(kind, wants := annotation(getattr(made, "func", made), place)):
                raise ConfigError(f"{origin}: @{name} takes {describe(wants)} as {place}, and is called with {describe(kind)}")


def _apart(given: Any, expected: Any) -> bool:
    """Whether two classes, protocols aside, have nothing to do with each other: a function is no tensor; a number is a number."""
    classes = [_class(kind) for kind in (given, expected)]
    plain = all(isinstance(kind, type) and kind is not object for kind in classes)
    return (
        plain
        and not {*classes} <= {int, float, bool}
        and not any(getattr(kind, "_is_protocol", False) for kind in classes)
        and not (issubclass(classes[0], classes[1]) or issubclass(classes[1], classes[0]))
    )


def _class(kind: Any) -> Any:
    """The class behind an annotation: of a tensor with a shape, and of a generic, without what is in brackets."""
    kind = getattr(kind, "array_type", kind)
    return typing.get_origin(kind) or kind


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
    if isinstance(expected, type) and not typing.get_args(expected) and not _is_callable(expected):
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
    return _is_call_protocol(part) or typing.get_origin(part) is Callable or part is Callable


def _is_call_protocol(part: Any) -> bool:
    """Whether a protocol describes a function: it has ``__call__``, with the names of its arguments."""
    return getattr(part, "_is_protocol", False) and "__call__" in vars(part)


def _call(part: Any) -> tuple[tuple[list[tuple[str, Any]], list[str]] | None, Any]:
    """What something callable is given, by place (words and type of each) and by name, and what it returns; None = not said."""
    if _is_call_protocol(part):
        hints, given = _hints(part.__call__, False), list(inspect.signature(part.__call__).parameters.values())[1:]
        named = [parameter.name for parameter in given if parameter.kind is parameter.KEYWORD_ONLY]
        return ([(p.name, hints[p.name]) for p in given if p.name not in named], named), hints["return"]
    given, result = typing.get_args(part) or (..., Any)
    return None if given is ... else ([(describe(kind), kind) for kind in given], []), result


def _provides(result: Any, part: Any) -> bool:
    """Whether something of type ``result`` may stand where ``part`` is wanted."""
    if part is Any or result == part:
        return True
    items = zip(typing.get_args(result), typing.get_args(part), strict=False)
    if (float, int) in items:  # a list of weights is no list of places
        return False
    result, part = (typing.get_origin(kind) or kind for kind in (result, part))
    if not isinstance(part, type) or not isinstance(result, type):
        return False
    if getattr(part, "_is_protocol", False):
        return all(hasattr(result, name) for name in dir(part) if not name.startswith("_"))
    return issubclass(result, part) or (part is float and result is int)
