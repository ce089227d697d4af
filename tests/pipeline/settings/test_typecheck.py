"""Whether a value fits an annotation: Python's rules, and stricter where Python's hide mistakes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import pytest

from pipeline.settings.typecheck import annotation, describe, fits, items_with_annotations, takes_reference


class Shape:
    def __init__(self, sides: int = 3) -> None:
        self.sides = sides


class Square(Shape):
    pass


class Sided(Protocol):
    def count(self) -> int: ...


class Counting:
    def count(self) -> int:
        return 4


def shape() -> Shape:
    return Shape()


def sides() -> int:
    return 3


def shapes() -> list[Shape]:
    return [Shape()]


def nothing() -> None:
    pass


def untyped(x):
    return x


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (3, int, True), (3.0, int, False), ("3", int, False), (True, int, False), (None, int, False),
        (3, float, True), (3.5, float, True), (True, float, False), ("a", float, False),
        (True, bool, True), (1, bool, False), (None, bool | None, True), (True, bool | None, True),
        ("a", str, True), (3, str, False),
        (None, int | None, True), (3, int | None, True), ("a", int | None, False),
        ("fp32", Literal["fp32", "bf16"], True), ("fp16", Literal["fp32", "bf16"], False), (3, Literal["fp32"], False),
        (["a"], Sequence[str], True), ("a", Sequence[str], False), ([3], Sequence[str], False), ("a", str | Sequence[str], True),
        ([1, 2], tuple[int, int], True), ((1, 2), tuple[int, int], True), ([1, 2, 3], tuple[int, int], False),
        ([1], tuple[int, ...], True),
        ({"a": 1}, Mapping[str, int], True), ({"a": "b"}, Mapping[str, int], False), ([1], Mapping[str, int], False),
        ("anything", Any, True), (True, Any, True),
    ],
)  # fmt: skip
def test_a_value_fits_or_does_not(value, wanted, expected):
    assert fits(value, wanted) is expected


@pytest.mark.parametrize(
    ("wanted", "made", "evaluated", "expected"),
    [
        (Callable[..., Shape], shape, False, True),
        (Callable[..., Shape], Shape, False, True),
        (Callable[..., Shape], Square, False, True),
        (Callable[..., Square], Shape, False, False),
        (Callable[[int], int], shape, False, False),
        (Callable[[int], int], sides, False, True),
        (Callable[[int], float], sides, False, True),
        (Callable[[int], int] | None, sides, False, True),
        (Callable[[int], int] | None, shape, False, False),
        (Callable[[int], list[Shape]], shapes, False, True),
        (Callable[[int], list[Shape]], shape, False, False),
        (Callable[..., Sided], Counting, False, True),
        (Callable[..., Sided], shape, False, False),
        (Callable[..., Any], shape, False, True),
        (Callable, shape, False, True),
        (Callable[..., Shape], untyped, False, False),
        (Callable[..., Any], untyped, False, False),
        (Callable[..., int], nothing, False, False),
        (Callable[..., Shape], Shape, True, False),
        (int, shape, False, False),
        (Shape, Shape, False, False),
        (Shape, Shape, True, True),
        (Shape, Square, True, True),
        (Square, Shape, True, False),
        (Shape, shape, True, True),
        (int, shape, True, False),
        (Shape | None, Square, True, True),
        (Sided, Counting, True, True),
        (Sided, Shape, True, False),
        (Any, Shape, True, True),
        (Any, shape, False, True),
        (int, untyped, True, False),
        (int | str, untyped, True, False),
        (int, nothing, True, False),
    ],
)
def test_a_reference_fits_where_its_function_or_result_is_wanted(wanted, made, evaluated, expected):
    assert takes_reference(wanted, made, evaluated) is expected


@pytest.mark.parametrize(
    ("value", "wanted", "parts"),
    [
        ([1, 2], Sequence[int], [[(int, 1), (int, 2)]]),
        ([1, 2], list[int] | tuple[int, ...], [[(int, 1), (int, 2)], [(int, 1), (int, 2)]]),
        ([1, 2], tuple[int, str], [[(int, 1), (str, 2)]]),
        ([1, 2], tuple[int], []),
        ([1], list, [[(Any, 1)]]),
        ([1], int | None, []),
        ([1], Mapping[str, int], []),
        ({"a": 1}, Mapping[str, int], [[(str, "a"), (int, 1)]]),
        ({"a": 1}, Mapping[str, int] | None, [[(str, "a"), (int, 1)]]),
        ({"a": 1}, Sequence[int], []),
        ([], Sequence[int], [[]]),
    ],
)
def test_items_are_paired_with_what_their_container_holds(value, wanted, parts):
    assert items_with_annotations(value, wanted) == parts


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (int, "int"),
        (float | None, "float or None"),
        (Literal["fp32", "bf16"], "'fp32' or 'bf16'"),
        (Sequence[str], "Sequence[str]"),
        (Mapping[str, tuple[str, float]], "Mapping[str, tuple[str, float]]"),
        (Callable[[int], list[float]], "Callable (a reference such as '@module.name')"),
        (Any, "Any"),
    ],
)
def test_an_annotation_is_written_as_people_write_it(wanted, text):
    assert describe(wanted) == text


@pytest.mark.parametrize(("function", "parameter", "found"), [(Shape, "sides", int), (fits, "wanted", Any), (untyped, "x", Any)])
def test_the_annotation_of_a_parameter(function, parameter, found):
    assert annotation(function, parameter) is found
