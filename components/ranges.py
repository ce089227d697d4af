"""Ranges of numbers, stated once in a parameter's annotation: ``lr: PositiveFloat``, ``ema: Decay``.

configure compares every setting with them, ``--help`` prints them, and what is decorated with ``in_range`` refuses a call from
Python with the same statement. A range holds for one number; how two of them must fit each other is said where they meet.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """The numbers that a parameter may be: finite ones between bounds; None = no bound.

    Attributes:
        ge, gt: lower bound, itself allowed or not.
        le, lt: upper bound, itself allowed or not.
    """

    ge: int | float | None = None
    gt: int | float | None = None
    le: int | float | None = None
    lt: int | float | None = None

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is a number within the bounds.

        >>> [Range(ge=0, lt=1).holds(x) for x in (0, 0.99, 1, float("nan"), "a")]
        [True, True, False, False, False]
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return not (
            (isinstance(value, float) and not math.isfinite(value))
            or (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )

    def __str__(self) -> str:
        """The bounds as people say them.

        >>> str(Range(ge=1)), str(Range(gt=0, le=1))
        ('at least 1', 'above 0, at most 1')
        """
        words = {"at least": self.ge, "above": self.gt, "at most": self.le, "below": self.lt}
        return ", ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None) or "finite"


PositiveInt = Annotated[int, Range(ge=1)]
NonNegativeInt = Annotated[int, Range(ge=0)]
Depth = Annotated[int, Range(ge=1, le=10_000)]  # of what is built or gone through one after the other
SeveralSteps = Annotated[int, Range(ge=2, le=10_000)]  # of a recursion whose last step is compared with the one before
Layers = Annotated[int, Range(ge=0, le=10_000)]
Passes = Annotated[int, Range(ge=0, le=10_000)]
Seed = Annotated[int, Range(ge=0, lt=2**62)]
PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]
PositiveShare = Annotated[float, Range(gt=0, le=1)]
InnerShare = Annotated[float, Range(gt=0, lt=1)]
Decay = Annotated[float, Range(ge=0, lt=1)]


def stated(annotation: Any) -> list[Range]:
    """Collect the ranges that an annotation states of a number, or of those within tuples, lists and mappings.

    >>> [str(limit) for limit in stated(tuple[str, PositiveInt] | None)]
    ['at least 1']
    """
    if typing.get_origin(annotation) is Annotated:
        return [item for item in typing.get_args(annotation)[1:] if isinstance(item, Range)]
    return list(dict.fromkeys(limit for part in typing.get_args(annotation) for limit in stated(part)))


def breach(value: Any, annotation: Any) -> Range | None:
    """Find the range of an annotation that a value of its type breaks; items of tuples, lists and mappings included.

    >>> str(breach((0.9, 1.0), tuple[Decay, Decay])), breach(None, PositiveInt | None)
    ('at least 0, below 1', None)
    """
    if typing.get_origin(annotation) is Annotated:
        return next((limit for limit in stated(annotation) if not limit.holds(value)), None)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        broken = [breach(value, option) for option in arguments if (option is type(None)) == (value is None)]
        return None if None in broken else next(iter(broken), None)
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping) and len(arguments) == 2:
        parts = [(item, arguments[1]) for item in value.values()]
    elif isinstance(value, list | tuple) and arguments:
        repeated = origin is not tuple or ... in arguments
        parts = list(zip(value, arguments[:1] * len(value) if repeated else arguments, strict=False))
    return next(filter(None, (breach(item, part) for item, part in parts)), None)


def in_range(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse a call with a number outside the range that its parameter's annotation states.

    Raises:
        ValueError: it names the function, the parameter and the range.
    """
    signature, annotations = inspect.signature(function), typing.get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if broken := breach(value, annotations.get(name, Any)):
                where = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}".removesuffix(".__init__")
                raise ValueError(f"{where}.{name} must be {broken}, got {value!r}")
        return function(*args, **kwargs)

    return checked
