"""Whether a value fits an annotation: Python's rules, and stricter where Python's hide mistakes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Protocol

import pytest

from pipeline.errors import ConfigError
from pipeline.settings.typecheck import annotation, check_call, describe, fits, items_with_annotations, takes_reference


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


class Keyed(Protocol):
    def __call__(self, split: str, *, backbone: int) -> list[int]: ...


def keyed(split: str, *, backbone: int, near: int = 0) -> list[int]:
    return [backbone, near]


def needy(split: str, *, backbone: int, folder: str) -> list[int]:
    return [backbone]


def weights(steps: int) -> list[float]:
    return [1.0] * steps


def two(a: int, b: int) -> list[int]:
    return [a, b]


def any_number(*values: int, **named: int) -> list[int]:
    return [*values, *named.values()]


@pytest.mark.parametrize(
    ("expected", "made", "bound", "told"),
    [
        (Keyed, keyed, [], None),
        (Keyed, keyed, ["near"], None),
        (Keyed, needy, ["folder"], None),
        (Keyed, needy, [], "m.f.folder is required; bind it"),
        (Keyed, two, ["b"], r"@m.f takes \(a, b\), and is called with \(split, backbone\)"),
        (Keyed, any_number, [], None),
        (Callable[[int], list[int]], two, [], "m.f.b is required"),
        (Callable[[int], list[int]], two, ["b"], None),
        (Callable[[int, int], list[int]], two, [], None),
        (Callable[[int, int, int], list[int]], two, [], r"takes \(a, b\), and is called with \(int, int, int\)"),
        (Callable[[int, int, int], list[int]], any_number, [], None),
        (Callable[..., list[int]], two, [], None),
        (Callable[[int], list[int]] | None, two, [], "m.f.b is required"),
        (Callable[[int], list[float]], weights, [], None),
    ],
)
def test_a_reference_is_compared_with_how_it_will_be_called(expected, made, bound, told):
    refused = nullcontext() if told is None else pytest.raises(ConfigError, match=f"here: .*{told}")
    with refused:
        check_call(expected, made, "m.f", bound, "here")


def test_a_protocol_is_nothing_that_could_be_called():
    assert not any(takes_reference(wanted, Keyed, evaluated) for wanted in (Any, Callable, Keyed) for evaluated in (False, True))


def test_what_is_called_with_names_is_a_function_and_not_its_result():
    assert takes_reference(Keyed, keyed, evaluated=False) and not takes_reference(Keyed, keyed, evaluated=True)
    assert not takes_reference(Keyed, weights, evaluated=False) and describe(Keyed).startswith("Callable")
