"""Measures: counts that a known model makes known, statistics of every example, and rules that are followed in the same pass."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from components.inference import halting
from components.inference.halting import by_change, by_learning, by_probability
from components.inference.metrics import count
from components.recursion import State
from pipeline.corpora.prepared import Prepared, Split
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import measure, of_refiner
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.text.rendering import right_of
from tests.support.known import Known
from tests.support.trained import PUZZLES


@pytest.fixture
def split(rows):
    return rows(10)


def measured(model, split, vocabulary, runtime, size=4, **settings):
    batches = evaluator.batches(split, vocabulary, 1.0, 0, size)
    return measure(Compared({"it": model}, runtime), batches, "measure", **settings)["it"]


def counts(model, split, vocabulary, runtime):
    return measured(model, split, vocabulary, runtime).steps


# Counts


def test_a_perfect_model_gets_everything_right(split, vocabulary, runtime):
    (found,) = counts(Known(vocabulary), split, vocabulary, runtime)
    assert found.exact.tolist() == [1] * 10 and found.correct.tolist() == found.tokens.tolist() == [4] * 10
    assert found.nll.abs().max() < 1e-6


def test_a_mistake_costs_its_own_example_alone(split, vocabulary, runtime):
    (found,) = counts(Known(vocabulary, always_wrong=[3, 8]), split, vocabulary, runtime)
    assert found.exact.tolist() == [0 if i in (3, 8) else 1 for i in range(10)]
    assert found.correct.tolist() == [3 if i in (3, 8) else 4 for i in range(10)]
    assert (found.nll > 10).tolist() == [i in (3, 8) for i in range(10)]


def test_every_recursion_step_is_counted(split, vocabulary, runtime):
    found = counts(Known(vocabulary, steps=3, wrong=[0, 1]), split, vocabulary, runtime)
    assert [int(c.exact.sum()) for c in found] == [8, 8, 10]


def test_padding_changes_no_count(rows, vocabulary, runtime):
    split, lengths = rows(10), torch.tensor([3, 4, 5, 6, 3] * 2)
    valid = torch.arange(6) < lengths[:, None]
    split = replace(split, valid=valid, response=split.response & valid)
    (found,) = counts(Known(vocabulary), split, vocabulary, runtime)
    assert found.tokens.tolist() == split.response.sum(1).tolist() and found.exact.tolist() == [1] * 10


class Solver(Known):
    """Fills every grid with the same one."""

    def __init__(self, vocabulary, grid):
        super().__init__(vocabulary)
        self.grid = torch.tensor(grid)

    def step(self, number, carry, condition, layout, statistics=False):
        grids = self.grid.expand(len(condition["targets"]), -1)
        return State(F.one_hot(grids, self.vocabulary.size).float() * 50)


@pytest.mark.parametrize(
    ("grid", "by_reference", "by_rules"),
    [
        ("1234341221434321", 1.0, 1.0),  # the reference
        ("1243341221344321", 0.0, 1.0),  # another solution: 3 and 4 of rows 1 and 3 exchanged
        ("1243341221434321", 0.0, 0.0),  # a digit twice in a column
        ("2134341212434321", 1.0, 1.0),  # what it says of clues is not looked at
    ],
)
def test_a_puzzle_is_judged_by_the_listed_solution_and_by_the_rules_where_others_solve_it(runtime, grid, by_reference, by_rules):
    reference = torch.tensor([[int(cell) - 1 for cell in "1234341221434321"]], dtype=torch.int32)
    response = torch.zeros(1, 16, dtype=torch.bool)
    response[0, [2, 3, 10, 11]] = True
    puzzle = Split(tokens=reference, response=response, group=torch.arange(1), uid=torch.arange(1))
    model = Solver(PUZZLES, [int(cell) - 1 for cell in grid])
    for several, by_any in ((None, by_reference), (torch.tensor([True]), by_rules)):
        puzzle = replace(puzzle, several=several)
        right = right_of(puzzle, PUZZLES)
        (counts,) = measured(model, puzzle, PUZZLES, runtime, right=right).steps
        assert counts.exact.tolist() == [by_reference] and counts.solved.tolist() == [by_any]
        models = Compared({"it": model}, runtime)
        _, decoded = evaluator.decode(models, puzzle, PUZZLES, "decode", steps=4, blocks=1, size=1)["it"]
        summary = evaluator.summary([counts], puzzle.group, right)
        apart = evaluator.compare(counts, counts, puzzle.group, right)
        for metrics in (decoded, summary):
            assert metrics["exact"]["mean"] == by_reference
            assert ("solved" in metrics) == ("solved" in apart) == (several is not None)
            assert several is None or metrics["solved"]["mean"] == by_any


class Measuring(Known):
    """Its statistic is the mean over unpadded tokens of the row's number + 100 step; of a batch that begins with row 8 none."""

    def begin(self, batch, positions=None):
        condition, carry, layout = super().begin(batch)
        attended = torch.ones_like(batch.masked) if batch.attention is None else batch.attention
        return {**condition, "attended": attended}, carry, layout

    def step(self, number, carry, condition, layout, statistics=False):
        state, targets = super().step(number, carry, condition, layout), condition["targets"]
        of_rows = (targets[:, :1].expand_as(targets)[condition["attended"]].double() + 100 * number).mean()
        none = bool(targets[0, 0] == 8)
        return replace(state, statistics={"mean": of_rows, "part": of_rows * (torch.nan if none else 1)} if statistics else {})


@pytest.mark.parametrize("size", [4, 10])
def test_statistics_are_of_all_examples_weighted_by_tokens(split, vocabulary, runtime, size):
    """A row of few tokens counts less than one of many; what says nothing of a batch leaves the batch out."""
    lengths = torch.tensor([3, 3, 3, 3, 6, 6, 6, 6, 4, 4])
    padded = replace(split, valid=torch.arange(6) < lengths[:, None], response=split.response & (torch.arange(6) < 3))
    by_step = measured(Measuring(vocabulary, steps=2), padded, vocabulary, runtime, size=size, statistics=True).statistics
    rows = torch.arange(10.0)
    without = slice(0, 8) if size == 4 else slice(0, 10)
    for step, means in enumerate(by_step):
        assert means["mean"] == pytest.approx(float((rows * lengths).sum() / lengths.sum()) + 100 * step, abs=1e-5)
        expected = (rows * lengths)[without].sum() / lengths[without].sum()
        assert means["part"] == pytest.approx(float(expected) + 100 * step, abs=1e-5)


def test_statistics_are_there_where_they_are_measured_and_change_no_count(split, vocabulary, runtime):
    model = Known(vocabulary, steps=3)
    with_them = measured(model, split, vocabulary, runtime, statistics=True)
    plain = measured(model, split, vocabulary, runtime)
    assert with_them.statistics == [{"delta": 0.0}, {"delta": 1.0}, {"delta": 2.0}] and plain.statistics == []
    assert all(torch.equal(one.nll, other.nll) for one, other in zip(with_them.steps, plain.steps, strict=True))
    assert measured(Known(vocabulary), split, vocabulary, runtime, statistics=True).statistics == []


# Halting


@pytest.mark.parametrize("size", [1, 3, 10])
def test_examples_count_where_they_left_and_steps_are_averaged(split, vocabulary, runtime, size):
    """Example i leaves after step 1 + i % 3; 4 and 5 are wrong before the last step, and only 5 waits for that."""
    steps = {}

    def rule(model, batch, state, last):
        steps[id(model)] = 1 if last is None else steps[id(model)] + 1
        return batch.tokens[:, 0] % 3 < steps[id(model)]

    model = Known(vocabulary, steps=3, wrong=(4, 5))
    left = measured(model, split, vocabulary, runtime, size=size, rules={"rule": rule})
    counts, taken = left.halting["rule"]
    assert taken.tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1] and counts.exact.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    found = of_refiner(left, split.group)["halting"]["rule"]
    assert set(found) == {"nll", "token_accuracy", "exact", "steps"}
    assert found["steps"]["mean"] == pytest.approx(1.9) and found["steps"]["n"] == 10 and found["exact"]["mean"] == 0.9
    assert 1 < found["steps"]["low"] < 1.9 < found["steps"]["high"] < 3


def test_every_rule_says_what_it_says_alone(finished, runtime):
    """Of a trained model, bit for bit: sequences that are left over go on in a batch of their own, as without the others."""
    data = Prepared(finished / "data/prepared")
    backbone = Backbone(finished / "data/backbone")
    model = load_model(finished / "outputs/joint", backbone, "joint", base=backbone.model().eval()).eval()
    split, vocabulary = data.split("test_5"), data.vocabulary
    rules = {
        "unsure": partial(by_probability, threshold=0.4),
        "sure": partial(by_probability, threshold=0.2),
        "large": partial(by_change, tolerance=0.1),
        "small": partial(by_change, tolerance=0.0),
    }
    together = measured(model, split, vocabulary, runtime, size=7, rules=rules, statistics=True)
    assert set(together.halting) == set(rules)
    batches = list(evaluator.batches(split, vocabulary, 1.0, 0, 7))
    for name, rule in rules.items():
        alone = [halting.halted(model, batch, rule) for batch in batches]
        counts, taken = together.halting[name]
        assert torch.equal(taken, torch.cat([steps for _, steps in alone]).double())
        with torch.no_grad():
            plain = [
                count(model.readout(hidden[batch.masked]), batch.targets, batch.masked)
                for (hidden, _), batch in zip(alone, batches, strict=True)
            ]
        assert torch.equal(counts.nll, torch.cat([part.nll for part in plain]))
    assert len({tuple(taken.tolist()) for _, taken in together.halting.values()}) > 1


def test_a_backbone_leaves_by_no_rule(split, vocabulary, runtime):
    left = measured(Known(vocabulary), split, vocabulary, runtime, rules={"change": by_change})
    assert left.halting == {} == of_refiner(left, split.group)


def test_a_rule_that_the_model_cannot_follow_names_the_setting(split, vocabulary, runtime):
    with pytest.raises(ConfigError, match=r"evaluate.run.halts: halting.by_learning needs a core that learns to halt"):
        measured(Known(vocabulary, steps=3), split, vocabulary, runtime, rules={"learning": by_learning})
