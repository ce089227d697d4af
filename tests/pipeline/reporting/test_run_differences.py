"""What sets two runs apart, against computations by hand."""

import math
from types import SimpleNamespace

import pytest

from pipeline.reporting.compared_runs import Run
from pipeline.reporting.run_differences import apart, pairs, same_data, verdict
from tests.support.handmade import value


def run(exact, half=0.01, digest="a", wrong=(), data="d", seed="0", metric="exact"):
    """A run whose traced examples are all right but those of these numbers."""
    tokens = [[0, 1, 2, 3]] * 8
    states = [[{"ids": [0, 1, 2, 2] if i in wrong else [0, 1, 2, 3], "probability": [1.0] * 4}] for i in range(8)]
    trace = {"rendering": "sudoku", "tokens": tokens, "response": [[False, True, True, True]] * 8, "models": {"joint": states}}
    content = {"models": {"joint": {metric: value(exact, half)}}, "evaluated": {"joint": digest}, "headline": "test"}
    evaluation = SimpleNamespace(content=content, inputs={"prepare": data}, digest="e")
    return Run("name", "", "smoke", evaluation, trace=trace, settings={("evaluate", "run.seed"): seed})


def test_a_difference_of_independent_means_has_the_root_of_both_squares():
    one = {"mean": 0.5, "low": 0.4, "high": 0.55, "n": 100}
    other = {"mean": 0.7, "low": 0.67, "high": 0.8, "n": 60}
    said = apart(one, other)
    assert said["mean"] == pytest.approx(0.2) and said["n"] == 60
    assert said["low"] == pytest.approx(0.2 - math.sqrt(0.05**2 + 0.03**2))
    assert said["high"] == pytest.approx(0.2 + math.sqrt(0.1**2 + 0.1**2))


@pytest.mark.parametrize(
    ("exact", "half", "digest", "metric", "says"),
    [
        (0.9, 0.01, "b", "exact", "better"),
        (0.7, 0.01, "b", "exact", "worse"),
        (0.9, 0.01, "b", "nll", "worse"),
        (0.7, 0.01, "b", "nll", "better"),
        (0.81, 0.02, "b", "exact", "not clear"),
        (0.9, 0.2, "b", "exact", "not clear"),
        (0.8, 0.01, "a", "exact", "same model"),
        (0.8, 0.01, "b", "exact", "not clear"),
        (0.9, 0.01, "a", "exact", "better"),  # the same model, measured in another way
    ],
)
def test_verdicts(exact, half, digest, metric, says):
    first, second = run(0.8, metric=metric), run(exact, half, digest, metric=metric)
    assert verdict(first, second, "joint", metric, higher_is_better=metric == "exact") == says


def test_pairs_count_examples_on_which_one_run_alone_is_right():
    said = pairs(run(0.5, wrong=(0, 1, 2, 3, 4, 5, 7)), run(0.6, wrong=(6, 7)), "joint", exact=True)
    assert (said.better, said.worse) == (6, 1)
    assert said.difference["mean"] == pytest.approx((6 - 1) / 8) and said.difference["n"] == 8
    shares = pairs(run(0.5, wrong=(0, 1)), run(0.6, wrong=(2,)), "joint", exact=False)
    assert (shares.better, shares.worse) == (2, 1) and shares.difference["mean"] == pytest.approx((2 - 1) / 3 / 8)


def test_few_pairs_are_never_clear():
    said = pairs(run(0.5, wrong=(0, 1, 2, 3, 4)), run(0.6), "joint", exact=True)
    assert said.better == 5 and said.difference["low"] <= 0


def test_other_examples_are_not_paired():
    first, second = run(0.5), run(0.5)
    second.trace["tokens"] = [[1, 0, 2, 3]] * 8
    assert pairs(first, second, "joint", exact=True) is None
    second = run(0.5)
    second.trace["response"] = [[True] * 4] * 8
    assert pairs(first, second, "joint", exact=True) is None
    assert pairs(first, run(0.5), "warmup", exact=True) is None
    lost = Run("lost", "", "", first.evaluation)
    assert pairs(first, lost, "joint", exact=True) is None and pairs(lost, first, "joint", exact=True) is None


@pytest.mark.parametrize(("data", "seed", "same"), [("d", "0", True), ("other", "0", False), ("d", "1", False), (None, "0", False)])
def test_the_same_data_is_the_same_digest_with_the_same_masks(data, seed, same):
    assert same_data(run(0.5, data=data if data is None else "d"), run(0.5, data=data, seed=seed)) is same
