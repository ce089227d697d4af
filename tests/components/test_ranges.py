"""Ranges of numbers: what they hold, how they are said, and that a call from Python is refused with the same words."""

import pytest

from components.objective.objective import Objective
from components.ranges import Decay, NonNegativeInt, PositiveFloat, PositiveInt, Range, Share, breach, in_range, stated
from components.training.ema import EMA
from components.training.optim import adamw, warmup_cosine


@pytest.mark.parametrize(
    ("limit", "inside", "outside"),
    [
        (Range(ge=0), (0, 0.0, 1e300, 10**400), (-1, -1e-9, float("nan"), float("inf"), -float("inf"), True, None, "1")),
        (Range(gt=0), (1e-300, 1), (0, 0.0, -1)),
        (Range(ge=0, lt=1), (0, 0.999), (1, 1.0, 2)),
        (Range(gt=0, le=1), (1, 0.5), (0, 1.0001)),
        (Range(), (-5, 0.0), (float("nan"), float("inf"))),
    ],
)
def test_a_range_holds_finite_numbers_between_its_bounds(limit, inside, outside):
    assert all(map(limit.holds, inside)) and not any(map(limit.holds, outside))


@pytest.mark.parametrize(
    ("value", "annotation", "broken"),
    [
        (0, PositiveInt, "at least 1"), (1, PositiveInt, None), (None, PositiveInt | None, None),
        (0, PositiveInt | None, "at least 1"),
        ((0.9, 1.0), tuple[Decay, Decay], "at least 0, below 1"), ([4, 0], tuple[PositiveInt, ...], "at least 1"),
        ([], tuple[PositiveInt, ...], None), ({"a": ("test", 1.5)}, dict[str, tuple[str, Share]], "at least 0, at most 1"),
        (-3, int, None), ("a", str, None), ([[1], [0]], list[list[PositiveInt]], "at least 1"),
    ],
)  # fmt: skip
def test_a_breach_is_found_however_deep(value, annotation, broken):
    found = breach(value, annotation)
    assert (None if found is None else str(found)) == broken


def test_every_range_that_is_stated_is_found_once():
    assert list(map(str, stated(tuple[str, PositiveInt, PositiveInt] | Share | None))) == ["at least 1", "at least 0, at most 1"]


def test_a_function_refuses_what_its_signature_does_not_allow():
    @in_range
    def scaled(by: PositiveFloat, times: NonNegativeInt = 1) -> float:
        return by * times

    assert scaled(2.0, times=3) == 6.0 and scaled(1) == 1
    with pytest.raises(ValueError, match=r"scaled.times must be at least 0, got -1"):
        scaled(2.0, -1)
    with pytest.raises(ValueError, match=r"scaled.by must be above 0, got 0"):
        scaled(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adamw([], lr=-1.0), "optim.adamw.lr must be at least 0, got -1.0"),
        (lambda: adamw([], betas=(0.9, 1.0)), r"optim.adamw.betas must be at least 0, below 1, got \(0.9, 1.0\)"),
        (lambda: adamw([], weight_decay=float("nan")), "optim.adamw.weight_decay must be at least 0, got nan"),
        (lambda: warmup_cosine(0, 10, lr_warmup_steps=-5), "optim.warmup_cosine.lr_warmup_steps must be at least 0, got -5"),
        (lambda: EMA([], 1.0), "ema.EMA.decay must be at least 0, below 1, got 1.0"),
        (lambda: Objective(4, curriculum=-1.0), "objective.Objective.curriculum must be at least 0, at most 1, got -1.0"),
    ],
)
def test_what_trains_states_its_ranges(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50, 99])
def test_a_warm_up_takes_half_of_a_run_at_most(steps):
    values = [warmup_cosine(step, steps) for step in range(steps)]
    assert max(values) == 1.0 and values.index(1.0) == max(0, steps // 2 - 1)
    assert values == [warmup_cosine(step, steps, lr_warmup_steps=steps // 2) for step in range(steps)]
