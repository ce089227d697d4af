import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.inference import metrics
from components.inference.metrics import SHARE, count, difference, interval, over_seeds, student_t

hypothesis_settings = settings(max_examples=25, deadline=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def width(result):
    return result["high"] - result["low"]


@hypothesis_settings
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_counts_equal_plain_loops(batch, seq, seed):
    g = seeded(seed)
    targets = torch.randint(3, (batch, seq), generator=g)
    masked = torch.rand(batch, seq, generator=g) < 0.5
    masked[:, 0] = True
    logits = torch.randn(batch, seq, 3, generator=g)
    counts = count(logits[masked], targets, masked)
    for row in range(batch):
        places = [i for i in range(seq) if masked[row, i]]
        p = [[math.exp(z) / sum(math.exp(y) for y in logits[row, i].tolist()) for z in logits[row, i].tolist()] for i in places]
        right = [p_i.index(max(p_i)) == targets[row, i].item() for p_i, i in zip(p, places, strict=True)]
        nll = -sum(math.log(p_i[targets[row, i]]) for p_i, i in zip(p, places, strict=True))
        assert counts.nll[row].item() == pytest.approx(nll, rel=1e-5)
        assert counts.correct[row].item() == sum(right)
        assert counts.tokens[row].item() == len(places)
        assert counts.exact[row].item() == all(right)


@st.composite
def ratios(draw):
    """Correct and supervised tokens per example, and the group of each."""
    n = draw(st.integers(1, 20))
    tokens = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    correct = [draw(st.integers(0, t)) for t in tokens]
    group = draw(st.lists(st.integers(-3, 7), min_size=n, max_size=n))
    return torch.tensor(correct).double(), torch.tensor(tokens).double(), torch.tensor(group)


@hypothesis_settings
@given(ratios(), st.integers(0, 2**31))
def test_mean_is_the_ratio_of_sums_and_lies_within_the_interval(data, seed):
    correct, tokens, group = data
    result = interval(correct, tokens, group, generator=seeded(seed), resamples=300, bounds=SHARE)
    assert result["mean"] == pytest.approx(sum(correct.tolist()) / sum(tokens.tolist()))
    assert 0 <= result["low"] <= result["mean"] <= result["high"] <= 1
    assert result["n"] == len(correct)


@hypothesis_settings
@given(ratios(), st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_interval(data, seed):
    first, second = (interval(*data, generator=seeded(seed), resamples=50) for _ in range(2))
    assert first == second


def test_interval_of_a_mean_is_close_to_the_normal_approximation():
    values = torch.randn(400, generator=seeded(), dtype=torch.float64)
    result = interval(values, torch.ones(400), torch.arange(400), generator=seeded(1))
    error = values.std().item() / 20
    assert result["low"] == pytest.approx(result["mean"] - 1.96 * error, abs=0.3 * error)
    assert result["high"] == pytest.approx(result["mean"] + 1.96 * error, abs=0.3 * error)


def test_grouping_identical_rows_widens_the_interval_by_the_root_of_their_number():
    rows = torch.randn(100, generator=seeded(), dtype=torch.float64).repeat_interleave(9)
    clustered = interval(rows, torch.ones(900), torch.arange(100).repeat_interleave(9), generator=seeded(1))
    independent = interval(rows, torch.ones(900), torch.arange(900), generator=seeded(1))
    assert width(clustered) == pytest.approx(3 * width(independent), rel=0.15)


def test_groups_are_resampled_whole_whatever_their_labels_and_order():
    values = torch.randn(60, generator=seeded(), dtype=torch.float64)
    group = torch.arange(60) // 3
    order = torch.randperm(60, generator=seeded(2))
    plain = interval(values, torch.ones(60), group, generator=seeded(1))
    shuffled = interval(values[order], torch.ones(60), 10 * group[order] - 50, generator=seeded(1))
    assert shuffled == pytest.approx(plain)


@pytest.mark.parametrize(
    ("value", "groups", "bounds", "low", "high"),
    [
        (0.0, 50, SHARE, 0.0, 0.06),
        (1.0, 50, SHARE, 0.94, 1.0),
        (0.25, 50, SHARE, 0.235, 0.295),
        (0.0, 2, SHARE, 0.0, 1.0),
        (0.25, 1, SHARE, 0.0, 1.0),
        (0.5, 50, (-1.0, 1.0), 0.41, 0.53),
        (1.0, 50, None, 1.0, 1.0),
    ],
)
def test_where_all_groups_agree_the_rule_of_three_speaks_over_groups(value, groups, bounds, low, high):
    values = torch.full((100,), value)
    result = interval(values, torch.ones(100), torch.arange(100) % groups, generator=seeded(), resamples=50, bounds=bounds)
    assert result == pytest.approx({"mean": value, "low": low, "high": high, "n": 100})


@pytest.mark.parametrize(
    ("a", "b", "n", "low", "high"),
    [
        (0, 1, 8, -1, -0.25),
        (1, 0, 8, 0.25, 1),
        (0, 0, 8, -0.375, 0.375),
        (1, 0, 1, -1, 1),
        (1, 0, 3, -1, 1),
        (1, 1, 60, -0.05, 0.05),
    ],
)
def test_a_difference_in_which_all_agree_has_an_interval(a, b, n, low, high):
    ones = torch.ones(n)
    found = difference(a * ones, b * ones, ones, torch.arange(n), generator=seeded(), resamples=50, bounds=SHARE)
    assert found == pytest.approx({"mean": a - b, "low": low, "high": high, "n": n})


@pytest.mark.parametrize("n", [7, 30])
def test_the_rule_of_three_is_as_wide_as_what_agreement_allows(n):
    """A share of disagreeing groups beyond 3 / n would leave all of n agreeing less than 1 time in 20."""
    high = interval(torch.zeros(n), torch.ones(n), torch.arange(n), generator=seeded(), resamples=20, bounds=SHARE)["high"]
    assert (1 - high) ** n < 0.05


def test_parts_of_the_bootstrap_change_nothing_but_rounding(monkeypatch):
    values, group = torch.randn(90, generator=seeded(), dtype=torch.float64), torch.arange(90) // 2
    whole = interval(values, torch.ones(90), group, generator=seeded(3), resamples=101)
    for part in (1, 45, 450, 1000):
        monkeypatch.setattr(metrics, "PART", part)
        assert interval(values, torch.ones(90), group, generator=seeded(3), resamples=101) == pytest.approx(whole, rel=1e-12)


def test_the_bootstrap_draws_no_more_than_a_part_at_once(monkeypatch):
    drawn, randint = [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda high, size, **settings: drawn.append(size) or randint(high, size, **settings))
    monkeypatch.setattr(metrics, "PART", 1000)
    interval(torch.rand(90), torch.ones(90), torch.arange(90), generator=seeded(), resamples=101)
    assert sum(rows for rows, _ in drawn) == 101 and max(rows * groups for rows, groups in drawn) <= 1000


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    g, truth, covered = seeded(), 0.3, 0
    for _ in range(100):
        hits = (torch.rand(100, generator=g) < truth).double()
        result = interval(hits, torch.ones(100), torch.arange(100), generator=g, resamples=200)
        covered += result["low"] <= truth <= result["high"]
    assert 85 <= covered <= 99


def two_models():
    """Scores of two models that find the same examples hard."""
    a = torch.randn(200, generator=seeded(), dtype=torch.float64)
    return a, a - 0.1 + 0.1 * torch.randn(200, generator=seeded(1), dtype=torch.float64)


def test_difference_equals_the_difference_of_means():
    a, b = two_models()
    result = difference(a, b, torch.ones(200), torch.arange(200), generator=seeded(2))
    assert result["mean"] == pytest.approx(a.mean().item() - b.mean().item())
    assert 0 < result["low"] < result["mean"] < result["high"]


def test_a_paired_difference_is_tighter_than_an_unpaired_one():
    a, b = two_models()
    ones, group = torch.ones(200), torch.arange(200)
    paired = difference(a, b, ones, group, generator=seeded(2))
    unpaired = difference(a, b[torch.randperm(200, generator=seeded(3))], ones, group, generator=seeded(2))
    assert unpaired["mean"] == pytest.approx(paired["mean"])
    assert width(paired) < 0.25 * width(unpaired)


def test_a_model_compared_with_itself_differs_by_nothing():
    values, ones = torch.rand(20, generator=torch.Generator().manual_seed(0)), torch.ones(20)
    found = difference(values, values, ones, torch.arange(20), generator=torch.Generator().manual_seed(0))
    assert (found["mean"], found["low"], found["high"]) == (0, 0, 0)


# Two-sided 95 % and 99 % points, as printed in tables of Student's distribution.
POINTS = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 9: (2.262, 3.250), 10: (2.228, 3.169), 30: (2.042, 2.750),
          120: (1.980, 2.617)}  # fmt: skip


@pytest.mark.parametrize("degrees", POINTS)
def test_points_of_students_distribution_are_those_of_the_table(degrees):
    assert (round(student_t(0.95, degrees), 3), round(student_t(0.99, degrees), 3)) == POINTS[degrees]


def test_with_many_degrees_students_distribution_is_normal():
    assert abs(student_t(0.95, 100_000) - statistics.NormalDist().inv_cdf(0.975)) < 1e-4


@pytest.mark.parametrize("n", [2, 11, 200])
def test_over_seeds_is_mean_and_t_times_the_standard_error(n):
    values = torch.randn(n, generator=seeded(), dtype=torch.float64)
    found = over_seeds(values.tolist())
    assert found["n"] == n and math.isclose(found["mean"], float(values.mean()))
    assert math.isclose(width(found) / 2, student_t(0.95, n - 1) * float(values.std() / n**0.5))


def test_a_single_seed_has_no_interval():
    assert over_seeds([0.25]) == {"mean": 0.25, "n": 1}
