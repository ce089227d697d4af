"""What an evaluation measures: what means nothing is refused."""

import pytest

from components.inference.measures import check_measures

GOOD = {
    "measures": {"a": ("test", 0.3), "b": ("test", 1.0)},
    "decodes": {"a": ("test", 8, 2, 5)},
    "forgetting": None,
    "headline": "a",
}


@pytest.mark.parametrize("splits", [None, ("train", "test")])
@pytest.mark.parametrize("change", [{}, {"forgetting": ("test", 0.15)}, {"decodes": {}}, {"measures": {"a": ("test", 1)}}])
def test_what_means_something_is_accepted(change, splits):
    check_measures(**GOOD | change, splits=splits)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"headline": "c"}, "headline is 'c', which is none of the measures a, b"),
        ({"measures": {}}, "headline is 'a'"),
        *(({"decodes": {"d": ("test", *n, 1)}}, "decodes, 'd': expected .* got") for n in [(8, 3), (1, 2), (9, 4)]),
        ({"measures": {"a": ("tset", 0.5)}}, "measures, 'a': there is no split 'tset'; the corpus has train, test"),
        ({"decodes": {"a": ("tset", 8, 1, 5)}}, "decodes, 'a': there is no split 'tset'"),
        ({"forgetting": ("tset", 0.5)}, "forgetting: there is no split 'tset'"),
    ],
)
def test_what_means_nothing_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        check_measures(**GOOD | change, splits=("train", "test"))
