"""Depths: one pass says what recursions of these very lengths say, and what the states still do."""

import pytest
import torch

from components.inference.metrics import count
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.depths import at_depths
from tests.support.known import Known
from tests.support.masked import masked

METRICS = ("nll", "token_accuracy", "exact")


@pytest.mark.parametrize("depths", [(1, 2, 8), (3,), (8, 2, 2, 1), (4,), ()])
def test_every_depth_is_what_a_recursion_of_that_length_says(trained, runtime, depths):
    models, data = trained
    split = data.split("test_5")
    rows = at_depths(Compared(models, runtime), masked(split, data.vocabulary), depths, split.group)
    assert list(rows) == ["joint"] and [row["steps"] for row in rows["joint"]] == sorted({*depths, 4})
    for row in rows["joint"]:
        sums = torch.zeros(4, dtype=torch.float64)
        for batch in masked(split, data.vocabulary):
            with torch.no_grad():
                *_, state = models["joint"].steps(batch, steps=row["steps"])
                counts = count(models["joint"].readout(state.hidden[batch.masked]), batch.targets, batch.masked)
            sums += torch.stack([counts.nll.sum(), counts.correct.sum(), counts.exact.sum(), counts.tokens.sum()])
        nll, correct, exact, tokens = sums.tolist()
        assert [row[name]["mean"] for name in METRICS] == pytest.approx([nll / tokens, correct / tokens, exact / len(split)])
        assert row["trained"] == (row["steps"] == 4) and row["exact"]["n"] == len(split)


def test_the_change_of_the_states_is_that_of_the_last_step(trained, runtime):
    models, data = trained
    split = data.split("test_5")
    first, second, fourth = at_depths(Compared(models, runtime), masked(split, data.vocabulary), (1, 2), split.group)["joint"]
    assert "change" not in first
    changes = {2: [], 4: []}
    for batch in masked(split, data.vocabulary, len(split)):
        with torch.no_grad():
            states = [state.hidden.double() for state in models["joint"].steps(batch)]
        for steps, values in changes.items():
            now, before = states[steps - 1].flatten(1), states[steps - 2].flatten(1)
            values += [float((a - b).norm() / a.norm()) for a, b in zip(now, before, strict=True)]
    for row in (second, fourth):
        assert (
            row["change"]["mean"] == pytest.approx(sum(changes[row["steps"]]) / len(split), rel=1e-6) and row["change"]["n"] == 30
        )


def test_padding_does_not_count_as_a_state(rows, vocabulary, runtime):
    """Rows of other lengths change as much, as long as what is no padding does."""
    split = rows(6)
    valid = torch.ones(6, 6, dtype=torch.bool)
    valid[::2, 5] = False
    split = split.__class__(**{**vars(split), "valid": valid, "response": split.response & valid})
    model = Known(vocabulary, steps=2, wrong=[1])
    (_, last) = at_depths(Compared({"it": model}, runtime), masked(split, vocabulary), (1, 2), split.group)["it"]
    moved = (2 / 6) ** 0.5  # of six one-hot states one changes: two entries of the six that there are
    assert last["change"]["mean"] == pytest.approx(moved / 6)


def test_differences_from_the_trained_number_are_paired(rows, vocabulary, runtime):
    split, model = rows(10), Known(vocabulary, steps=3, wrong=[0, 1, 2])
    at = at_depths(Compared({"it": model}, runtime), masked(split, vocabulary), (1, 64), split.group)["it"]
    assert [(row["steps"], row["exact"]["mean"], row["minus_trained"]["exact"]["mean"]) for row in at] == [
        (1, 0.7, -0.3), (3, 1.0, 0.0), (64, 1.0, 0.0)
    ]  # fmt: skip


def test_a_model_without_recursion_has_no_depths(rows, vocabulary, runtime):
    split = rows(4)
    models = {"one": Known(vocabulary), "two": Known(vocabulary, steps=2)}
    assert list(at_depths(Compared(models, runtime), masked(split, vocabulary), (1, 8), split.group)) == ["two"]


def test_only_the_deepest_pass_is_run_and_only_depths_are_read(rows, vocabulary, runtime, monkeypatch):
    """What reading all depths costs beside the deepest alone: a readout for each, and not one step."""
    taken, read = [], []
    step, readout = Known.step, Known.readout
    monkeypatch.setattr(Known, "step", lambda self, number, *rest: taken.append(number) or step(self, number, *rest))
    monkeypatch.setattr(Known, "readout", lambda self, state: read.append(1) or readout(self, state))
    split = rows(4)
    at_depths(Compared({"it": Known(vocabulary, steps=4)}, runtime), masked(split, vocabulary), (1, 2, 4, 8, 64), split.group)
    assert taken == list(range(64)) and len(read) == 5
