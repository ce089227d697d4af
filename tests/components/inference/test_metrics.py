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
        (0.0, 50, SHARE, 0.0, 0.0711),
        (1.0, 50, SHARE, 0.9289, 1.0),
        (0.25, 50, SHARE, 0.2322, 0.3033),
        (0.0, 2, SHARE, 0.0, 0.8419),
        (0.25, 1, SHARE, 0.0063, 0.9813),
        (0.5, 50, (-1.0, 1.0), 0.3933, 0.5356),
        (1.0, 50, None, 1.0, 1.0),
    ],
)
def test_where_all_groups_agree_the_interval_is_what_their_number_allows(value, groups, bounds, low, high):
    values = torch.full((100,), value)
    result = interval(values, torch.ones(100), torch.arange(100) % groups, generator=seeded(), resamples=50, bounds=bounds)
    assert result == pytest.approx({"mean": value, "low": low, "high": high, "n": 100}, abs=5e-5)


def paired(values, n, resamples=50):
    """The difference of two models' right answers, of which these examples' are given and all others' equal."""
    apart = torch.zeros(n, dtype=torch.float64)
    apart[: len(values)] = torch.tensor(values)
    a, b = apart.clamp(min=0), -apart.clamp(max=0)
    return difference(a, b, torch.ones(n), torch.arange(n), generator=seeded(), resamples=resamples, bounds=SHARE)


@pytest.mark.parametrize(
    ("a", "b", "n", "low", "high"),
    [
        (0, 1, 7, -1, -0.1808),
        (1, 0, 7, 0.1808, 1),
        (1, 0, 6, 0.0815, 1),
        (1, 0, 5, -0.0436, 1),
        (0, 0, 8, -0.3694, 0.3694),
        (1, 0, 1, -0.95, 1),
        (1, 1, 60, -0.0596, 0.0596),
    ],
)
def test_a_difference_in_which_all_agree_has_an_interval(a, b, n, low, high):
    ones = torch.ones(n)
    result = difference(a * ones, b * ones, ones, torch.arange(n), generator=seeded(), resamples=50, bounds=SHARE)
    assert result == pytest.approx({"mean": a - b, "low": low, "high": high, "n": n}, abs=5e-5)


@pytest.mark.parametrize("n", range(1, 51))
def test_equal_differences_are_clear_of_zero_where_a_sign_test_says_so_and_equal_scores_never(n):
    assert (paired([1] * n, n)["low"] > 0) == (2 * 0.5**n < 0.05) == (paired([-1] * n, n)["high"] < 0)
    none = paired([], n)
    assert none["low"] < 0 < none["high"]


@pytest.mark.parametrize(("values", "clear"), [([1] * 5, False), ([1] * 6, True), ([-1] * 6, True), ([1, -1] * 20, False)])
@pytest.mark.parametrize("n", [40, 400])
def test_fewer_than_six_groups_that_differ_show_nothing(values, clear, n):
    result = paired(values, n, resamples=2000)
    assert (result["low"] > 0 or result["high"] < 0) is clear


@pytest.mark.parametrize("values", [[0.3] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], [-2.0, -1.0]])
def test_a_difference_of_nats_over_few_groups_reaches_zero(values):
    a = torch.tensor(values, dtype=torch.float64)
    result = difference(a, 0 * a, torch.ones(len(a)), torch.arange(len(a)), generator=seeded())
    assert result["low"] <= 0 <= result["high"] and result["mean"] == pytest.approx(sum(values) / len(values))


def binomial(n, k, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


NEAR_THE_ENDS = [x for p in (0.001, 0.01, 0.02, 0.035, 0.065, 0.1, 0.2, 0.31, 0.4) for x in (p, 1 - p)]


@pytest.mark.parametrize("n", [*range(1, 21), 25, 30, 40, 50])
def test_the_interval_of_a_share_covers_it_at_least_95_times_in_100(n):
    """Not sampled: the probability of every number of right answers, times whether its interval holds the truth."""
    ones, group = torch.ones(n), torch.arange(n)
    bounds = []
    for k in range(n + 1):
        result = interval((group < k).double(), ones, group, generator=seeded(), resamples=5, bounds=SHARE)
        bounds.append((result["low"], result["high"]))
        assert result["low"] <= k / n <= result["high"]
    for p in [*NEAR_THE_ENDS, 0.5]:
        covered = sum(binomial(n, k, p) for k, (low, high) in enumerate(bounds) if low <= p <= high)
        assert covered >= 0.95 - 1e-9


@pytest.mark.parametrize("n", [1, 2, 5, 10, 30])
def test_the_interval_covers_wherever_groups_mostly_agree_between_the_bounds(n):
    """Groups at m, and with probability p at the bound that is farthest away: the true mean of samples in which all agree."""
    for m in (0.25, 0.5, 0.9):
        result = interval(torch.full((n,), m), torch.ones(n), torch.arange(n), generator=seeded(), resamples=5, bounds=SHARE)
        for p in (x / 200 for x in range(200)):
            for end in SHARE:
                missed = not result["low"] - 1e-9 <= (1 - p) * m + p * end <= result["high"] + 1e-9
                assert not missed or (1 - p) ** n <= 0.025 + 1e-9


@pytest.mark.parametrize("n", [6, 12, 20])
def test_models_that_are_equally_good_are_seldom_called_different(n):
    """Each is right alone with probability q: over all outcomes, one of 20 differences at most is called clear of zero."""
    clear = {}
    for plus in range(n + 1):
        for minus in range(n + 1 - plus):
            result = paired([1] * plus + [-1] * minus, n, resamples=400)
            clear[plus, minus] = result["low"] > 0 or result["high"] < 0
    for q in (0.001, 0.01, 0.03, 0.06, 0.1, 0.15):
        chance = sum(
            math.comb(n, plus) * math.comb(n - plus, minus) * q ** (plus + minus) * (1 - 2 * q) ** (n - plus - minus)
            for (plus, minus), says in clear.items()
            if says
        )
        assert chance <= 0.05


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


@hypothesis_settings
@given(st.lists(ratios(), min_size=1, max_size=1), st.integers(0, 2**31))
def test_ratios_of_each_resample_are_what_an_interval_is_made_of(data, seed):
    """Of common resamples: two kinds have the draws of one."""
    ((correct, tokens, group),) = data
    both = metrics.resampled_ratios(
        torch.stack([correct, tokens - correct]), torch.stack([tokens, tokens]), group, generator=seeded(seed), resamples=200
    )
    low, high = metrics.percentiles(both)
    alone = interval(correct, tokens, group, generator=seeded(seed), resamples=200)
    assert both.shape == (200, 2) and torch.allclose(both.sum(1), torch.ones(200, dtype=torch.float64))
    assert (low[0], high[0]) == pytest.approx((alone["low"], alone["high"]))


@pytest.mark.parametrize(
    ("values", "group", "differing"),
    [
        ([[0, 0, 0], [0, 0, 0]], [1, 2, 3], 0),
        ([[0, 1, 0], [0, 0, -1]], [1, 2, 3], 2),
        ([[0, 1, 0], [0, 0, -1]], [1, 2, 2], 1),
        ([[1, -1, 0]], [4, 4, 5], 0),  # within a group they cancel
    ],
)
def test_groups_that_differ_are_counted_over_all_kinds(values, group, differing):
    assert metrics.differing_groups(torch.tensor(values).double(), torch.tensor(group)) == differing
