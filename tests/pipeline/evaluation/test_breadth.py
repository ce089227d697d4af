"""Breadth: one pass says what recursions from these very starts say, chosen one example at a time, in any batch."""

import pytest
import torch

from components.inference.breadth import Breadth, by_change, by_majority, by_probability
from components.inference.metrics import count
from pipeline.evaluation.breadth import with_restarts
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.depths import at_depths
from tests.support.known import Known
from tests.support.masked import masked

METRICS = ("nll", "token_accuracy", "exact")
RULES = {"change": by_change, "probability": by_probability, "majority": by_majority}


def alone(model, batch, breadth, seed, steps):
    """Of one example: counts, change and mean probability of every restart, and its answer."""
    ends = []
    with torch.no_grad():
        condition, fresh, layout = model.begin(batch)
        for number in range(breadth.restarts[-1]):
            carry, states = breadth.start(number, fresh, model, batch, seed), []
            for step in range(steps):
                state = model.step(step, carry, condition, layout)
                carry = state.carry
                states.append(state.hidden.double())
            last, hidden = states[-2:]
            logits = model.readout(state.hidden[batch.masked])
            counts = count(logits, batch.targets, batch.masked)
            surest = logits.double().softmax(-1).max(-1)
            ends.append((
                {name: getattr(counts, name).item() for name in ("nll", "correct", "exact", "tokens")},
                float((hidden - last).norm() / hidden.norm()), float(surest.values.mean()), tuple(surest.indices.tolist()),
            ))  # fmt: skip
    return ends


@pytest.mark.parametrize("steps", [None, 2, 6])
def test_every_number_of_restarts_says_what_the_rule_chooses_of_the_first(trained, runtime, steps):
    models, data = trained
    split, breadth = data.split("test_5"), Breadth(RULES, (1, 3, 5), steps, 6.0)
    by_rule = with_restarts(Compared(models, runtime), masked(split, data.vocabulary), breadth, 4, split.group)["joint"]
    assert list(by_rule) == list(RULES)
    examples = [alone(models["joint"], of, breadth, 4, steps or 4) for of in masked(split, data.vocabulary, 1)]
    choose = {
        "change": lambda ends: min(ends, key=lambda end: end[1]),
        "probability": lambda ends: max(ends, key=lambda end: end[2]),
        "majority": lambda ends: max(ends, key=lambda end: [other[3] for other in ends].count(end[3])),
    }
    differing = 0
    for rule, rows in by_rule.items():
        assert [(row["restarts"], row["steps"]) for row in rows] == [(n, steps or 4) for n in (1, 3, 5)]
        for row in rows:
            chosen = [choose[rule](ends[: row["restarts"]])[0] for ends in examples]
            nll, correct, exact, tokens = (sum(c[name] for c in chosen) for name in ("nll", "correct", "exact", "tokens"))
            expected = [nll / tokens, correct / tokens, exact / len(split)]
            assert [row[name]["mean"] for name in METRICS] == pytest.approx(expected, rel=1e-4)
            one = sum(ends[0][0]["nll"] for ends in examples)
            assert row["minus_one"]["nll"]["mean"] == pytest.approx((nll - one) / tokens, rel=1e-3, abs=1e-6)
            differing += nll != one
    assert differing >= 2  # the noise is large enough to matter


def test_one_restart_is_the_recursion_without_noise_bit_for_bit(trained, runtime):
    models, data = trained
    split = data.split("test_5")
    compared, of = Compared(models, runtime), masked(split, data.vocabulary)
    depth = at_depths(compared, of, (6,), split.group)["joint"]
    for steps, row in ((None, depth[0]), (6, depth[1])):
        breadth = Breadth(RULES, (1, 2), steps)
        for rows in with_restarts(compared, of, breadth, 0, split.group)["joint"].values():
            assert all(rows[0][name] == row[name] for name in METRICS) and rows[0]["minus_one"]["nll"]["mean"] == 0


def test_numbers_do_not_depend_on_batches_or_on_the_other_numbers(trained, runtime):
    models, data = trained
    split = data.split("test_5")

    def exact(size, restarts, seed=0):
        breadth = Breadth(RULES, restarts, None, 1.5)
        rows = with_restarts(Compared(models, runtime), masked(split, data.vocabulary, size), breadth, seed, split.group)["joint"]
        return {rule: [row["nll"]["mean"] for row in rows[rule] if row["restarts"] == 4] for rule in rows}

    whole = exact(30, (1, 4, 6))
    for other in (exact(7, (1, 4, 6)), exact(30, (4,)), exact(1, (4, 2))):
        assert all(other[rule] == pytest.approx(whole[rule], rel=1e-5) for rule in RULES)
    assert exact(30, (4,), seed=1) != whole


def test_what_does_not_recur_or_carries_no_states_is_left_out(rows, vocabulary, runtime):
    split = rows(4)
    models = {"one": Known(vocabulary), "two": Known(vocabulary, steps=2)}
    assert with_restarts(Compared(models, runtime), masked(split, vocabulary), Breadth(RULES), 0, split.group) == {}
