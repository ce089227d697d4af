import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.supervision import constant, exponential_decay, last_only, linear_decay

hypothesis_settings = settings(max_examples=25, deadline=None)
STEPS = st.integers(1, 16)
WEIGHTS = st.floats(0.01, 1)
WEIGHTED = {"constant": constant, "linear_decay": linear_decay, "exponential_decay": exponential_decay}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, [0.3, 0.3, 0.3, 1]),
        (linear_decay, [0.3 * 1 / 4, 0.3 * 2 / 4, 0.3 * 3 / 4, 1]),
        (exponential_decay, [0.3 / 8, 0.3 / 4, 0.3 / 2, 1]),
    ],
)
def test_four_steps_weigh_as_written(schedule, expected):
    assert schedule(4, 0.3) == pytest.approx(expected)


def test_last_only_weighs_the_last_step_alone():
    assert last_only(3) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("schedule", WEIGHTED.values(), ids=WEIGHTED)
@hypothesis_settings
@given(STEPS, WEIGHTS)
def test_weights_are_one_per_step_never_fall_and_end_at_one(schedule, steps, weight):
    weights = schedule(steps, weight)
    assert len(weights) == steps
    assert weights[-1] == 1.0
    assert weights == sorted(weights)
    assert min(weights) > 0


@pytest.mark.parametrize("schedule", [*WEIGHTED.values(), last_only], ids=[*WEIGHTED, "last_only"])
@hypothesis_settings
@given(STEPS)
def test_normalised_weights_sum_to_one_in_the_same_proportions(schedule, steps):
    weights = schedule(steps)
    scaled = normalised(weights)
    assert sum(scaled) == pytest.approx(1)
    assert [s / scaled[-1] for s in scaled] == pytest.approx(weights)
    assert all(s < scaled[-1] for s in scaled[:-1])


def test_normalised_divides_by_the_sum():
    assert normalised([0.5, 0.5, 1.0]) == [0.25, 0.25, 0.5]
