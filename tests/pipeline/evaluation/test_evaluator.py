"""Evaluation: the same masks for every model and batch size, counts that a known model makes known, paired intervals."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from components.inference.halting import by_learning
from components.model import Model
from components.recursion import State
from components.refiners.core import Layout
from pipeline.corpora.prepared import Split
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator
from pipeline.text.rendering import rendering_of
from tests.support.trained import PUZZLES


class Known(Model):
    """Reads the answers off the batch; wrong at the examples of ``wrong`` before its last step, and where told after it."""

    def __init__(self, vocabulary, steps=1, wrong=(), always_wrong=()):
        super().__init__()
        self.vocabulary, self.n, self.wrong, self.always = vocabulary, steps, list(wrong), list(always_wrong)

    def steps(self, batch, *, statistics=False):
        for step in range(self.n):
            ids = batch.targets.clone()
            mistaken = self.always + (self.wrong if step < self.n - 1 else [])
            at_fault = torch.isin(batch.targets[:, 0], torch.tensor(mistaken, dtype=torch.long))
            ids[at_fault, -1] = (ids[at_fault, -1] + 1) % 50  # one token of the answer
            told = {"delta": torch.tensor(float(step))} if statistics and self.n > 1 else {}
            yield State(F.one_hot(ids, self.vocabulary.size).float() * 50, statistics=told)

    def readout(self, state):
        return state


@pytest.fixture
def split(rows):
    return rows(10)


def counts(model, split, vocabulary, runtime, ratio=1.0, size=4):
    return evaluator.counts_by_step(model, evaluator.batches(split, vocabulary, ratio, 0, size), runtime, "measure")


def masks(split, vocabulary, ratio, seed=0, size=4):
    return torch.cat([b.masked for b in evaluator.batches(split, vocabulary, ratio, seed, size)])


# Masks


@pytest.mark.parametrize("size", [1, 3, 10, 600])
def test_masks_do_not_depend_on_the_batch_size(split, vocabulary, size):
    assert torch.equal(masks(split, vocabulary, 0.5, size=size), masks(split, vocabulary, 0.5))


def test_masks_are_the_same_every_time_and_the_seed_decides(split, vocabulary):
    assert torch.equal(masks(split, vocabulary, 0.5), masks(split, vocabulary, 0.5))
    assert not torch.equal(masks(split, vocabulary, 0.5), masks(split, vocabulary, 0.5, seed=1))


@pytest.mark.parametrize(("ratio", "expected"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_the_ratio_is_that_of_every_answer(split, vocabulary, ratio, expected):
    masked = masks(split, vocabulary, ratio)
    assert set(masked.sum(1).tolist()) == {expected} and not (masked & ~split.response).any()


def test_masks_are_nested(split, vocabulary):
    half, most = masks(split, vocabulary, 0.5), masks(split, vocabulary, 0.75)
    assert (half <= most).all() and not torch.equal(half, most)


def test_masked_tokens_are_hidden_and_the_others_shown(split, vocabulary):
    for batch in evaluator.batches(split, vocabulary, 0.5, 0, 4):
        assert (batch.tokens[batch.masked] == vocabulary.mask_id).all()
        assert torch.equal(batch.tokens[~batch.masked], batch.targets[~batch.masked])


# Padding


def padded(split, lengths):
    valid = torch.arange(6) < torch.tensor(lengths)[:, None]
    return replace(split, valid=valid, response=split.response & valid)


def test_short_examples_come_first_with_everything_that_is_theirs(rows):
    ordered = evaluator.by_length(padded(rows(4), [6, 3, 5, 3]))
    assert ordered.uid.tolist() == ordered.tokens[:, 0].tolist() == [1, 3, 2, 0]
    assert ordered.valid.sum(1).tolist() == [3, 3, 5, 6]
    assert evaluator.by_length(rows(4)).uid.tolist() == [0, 1, 2, 3]


def test_padding_of_every_row_is_cut(rows, vocabulary):
    (batch,) = evaluator.batches(padded(rows(3), [4, 3, 5]), vocabulary, 1.0, 0, 3)
    cut = evaluator.trimmed(batch)
    assert cut.tokens.shape == (3, 5) and torch.equal(cut.tokens, batch.tokens[:, :5])
    assert torch.equal(cut.masked, batch.masked[:, :5]) and cut.masked.sum() == batch.masked.sum() and cut.hidden is None


def test_padding_changes_no_count(rows, vocabulary, runtime):
    split = padded(rows(10), [3, 4, 5, 6, 3] * 2)
    (found,) = counts(Known(vocabulary), split, vocabulary, runtime)
    assert found.tokens.tolist() == split.response.sum(1).tolist() and found.exact.tolist() == [1] * 10


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


def test_the_summary_is_of_the_last_step_with_every_step_beside(split, vocabulary, runtime):
    found = evaluator.summary(counts(Known(vocabulary, steps=2, wrong=[0]), split, vocabulary, runtime), split.group)
    assert found["exact"]["mean"] == 1 and found["exact"]["n"] == 10
    assert [v["mean"] for v in found["exact_by_step"]] == [0.9, 1.0]
    assert [v["mean"] for v in found["token_accuracy_by_step"]] == [39 / 40, 1.0]
    assert found["nll_by_step"][0]["mean"] > found["nll"]["mean"] == found["nll_by_step"][-1]["mean"]


class Solver(Known):
    """Fills every grid with the same one."""

    def __init__(self, vocabulary, grid):
        super().__init__(vocabulary)
        self.grid = torch.tensor(grid)

    def steps(self, batch, *, statistics=False):
        yield State(F.one_hot(self.grid.expand(len(batch), -1), self.vocabulary.size).float() * 50)


@pytest.mark.parametrize(
    ("grid", "by_reference", "by_rules"),
    [
        ("1234341221434321", 1.0, 1.0),  # the reference
        ("1243341221344321", 0.0, 1.0),  # another solution: 3 and 4 of rows 1 and 3 exchanged
        ("1243341221434321", 0.0, 0.0),  # a digit twice in a column
        ("2134341212434321", 1.0, 1.0),  # what it says of clues is not looked at
    ],
)
def test_any_solution_is_exact_where_the_kind_says_so(runtime, grid, by_reference, by_rules):
    reference = torch.tensor([[int(cell) - 1 for cell in "1234341221434321"]], dtype=torch.int32)
    response = torch.zeros(1, 16, dtype=torch.bool)
    response[0, [2, 3, 10, 11]] = True
    puzzle = Split(tokens=reference, response=response, group=torch.arange(1), uid=torch.arange(1))
    model = Solver(PUZZLES, [int(cell) - 1 for cell in grid])
    for kind, expected in (("sudoku", by_reference), ("sudoku_any", by_rules)):
        vocabulary = replace(PUZZLES, rendering=kind)
        batches = evaluator.batches(puzzle, vocabulary, 1.0, 0, 1)
        (counts,), _ = evaluator.measure_by_step(model, batches, runtime, kind, right=rendering_of(kind).right)
        assert counts.exact.tolist() == [expected]
        _, decoded = evaluator.decode(model, puzzle, vocabulary, runtime, steps=4, blocks=1, size=1)
        assert decoded["exact"]["mean"] == expected


# Comparison


def test_a_model_compared_with_itself_differs_by_nothing(split, vocabulary, runtime):
    (found,) = counts(Known(vocabulary, always_wrong=[1, 2]), split, vocabulary, runtime)
    share = 1 - 0.025 ** (1 / len(split.group.unique()))  # of the groups could differ, by all
    for name, value in evaluator.compare(found, found, split.group).items():
        width = 0 if name == "nll" else share
        assert (value["mean"], value["low"], value["high"]) == pytest.approx((0, -width, width))


def test_a_comparison_is_paired_and_signed(split, vocabulary, runtime):
    (good,) = counts(Known(vocabulary), split, vocabulary, runtime)
    (bad,) = counts(Known(vocabulary, always_wrong=range(6)), split, vocabulary, runtime)
    better, worse = evaluator.compare(good, bad, split.group), evaluator.compare(bad, good, split.group)
    assert better["exact"]["mean"] == 0.6 == -worse["exact"]["mean"]
    assert better["token_accuracy"]["mean"] == pytest.approx(6 / 40) and better["nll"]["high"] < 0 < worse["nll"]["low"]


# Decoding and traces


@pytest.mark.parametrize(("steps", "blocks"), [(1, 1), (2, 1), (4, 2)])
def test_decoding_a_perfect_model_gives_the_answers(split, vocabulary, runtime, steps, blocks):
    tokens, found = evaluator.decode(Known(vocabulary), split, vocabulary, runtime, steps=steps, blocks=blocks, size=3)
    assert torch.equal(tokens, split.tokens.long()) and found["exact"]["mean"] == found["token_accuracy"]["mean"] == 1


def test_decoding_counts_the_answer_alone(split, vocabulary, runtime):
    _, found = evaluator.decode(Known(vocabulary, always_wrong=[4]), split, vocabulary, runtime, steps=1, blocks=1, size=3)
    assert found["exact"]["mean"] == 0.9 and found["token_accuracy"]["mean"] == pytest.approx(39 / 40)


def test_a_trace_shows_every_step_and_leaves_the_prompt(split, vocabulary, runtime):
    trace = evaluator.trace(Known(vocabulary, steps=2, wrong=[7]), split, vocabulary, runtime)
    assert len(trace) == 10 and {len(steps) for steps in trace} == {2}
    assert trace[7][0]["ids"] == [7, 7, 7, 7, 7, 8] and trace[7][1]["ids"] == [7] * 6
    assert all(0.99 < p <= 1 for p in trace[7][1]["probability"])


def test_a_trace_never_shows_the_mask(rows, vocabulary, runtime):
    class Masking(Known):
        def readout(self, state):
            return F.one_hot(torch.full(state.shape[:-1], vocabulary.mask_id), vocabulary.size).float() * 50 + state / 50

    trace = evaluator.trace(Masking(vocabulary), rows(3), vocabulary, runtime)
    assert [steps[0]["ids"] for steps in trace] == [[i] * 6 for i in range(3)]


class Measuring(Known):
    """Its statistic is the mean over unpadded tokens of the row's number + 100 step; of a batch that begins with row 8 none."""

    def steps(self, batch, *, statistics=False):
        attended = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.attention is None else batch.attention
        for step, state in enumerate(super().steps(batch)):
            of_rows = batch.targets[:, :1].expand_as(batch.targets)[attended].double() + 100 * step
            none = bool(batch.targets[0, 0] == 8)
            measured = {"mean": of_rows.mean(), "part": of_rows.mean() * (torch.nan if none else 1)}
            yield State(state.hidden, statistics=measured if statistics else {})


@pytest.mark.parametrize("size", [4, 10])
def test_statistics_are_of_all_examples_weighted_by_tokens(split, vocabulary, runtime, size):
    """A row of few tokens counts less than one of many; what says nothing of a batch leaves the batch out."""
    lengths = torch.tensor([3, 3, 3, 3, 6, 6, 6, 6, 4, 4])
    padded = replace(split, valid=torch.arange(6) < lengths[:, None], response=split.response & (torch.arange(6) < 3))
    batches = evaluator.batches(padded, vocabulary, 1.0, 0, size)
    _, by_step = evaluator.measure_by_step(Measuring(vocabulary, steps=2), batches, runtime, "measure", statistics=True)
    rows = torch.arange(10.0)
    without = slice(0, 8) if size == 4 else slice(0, 10)
    for step, measured in enumerate(by_step):
        assert measured["mean"] == pytest.approx(float((rows * lengths).sum() / lengths.sum()) + 100 * step, abs=1e-5)
        expected = (rows * lengths)[without].sum() / lengths[without].sum()
        assert measured["part"] == pytest.approx(float(expected) + 100 * step, abs=1e-5)


def test_statistics_are_there_where_they_are_measured_and_change_no_count(split, vocabulary, runtime):
    def measured(model, **settings):
        batches = evaluator.batches(split, vocabulary, 1.0, 0, 4)
        return evaluator.measure_by_step(model, batches, runtime, "measure", **settings)

    counts, by_step = measured(Known(vocabulary, steps=3), statistics=True)
    plain, none = measured(Known(vocabulary, steps=3))
    assert by_step == [{"delta": 0.0}, {"delta": 1.0}, {"delta": 2.0}] and none == []
    assert all(torch.equal(one.nll, other.nll) for one, other in zip(counts, plain, strict=True))
    assert measured(Known(vocabulary), statistics=True)[1] == []


# Halting


class Recurring(Known):
    """Known, step by step: what halting runs."""

    n_steps = 3

    def begin(self, batch, positions=None):
        return {"targets": batch.targets}, {}, Layout()

    def step(self, number, carry, condition, layout, statistics=False):
        ids = condition["targets"].clone()
        at_fault = torch.isin(ids[:, 0], torch.tensor(self.wrong)) & (number < 2)
        ids[at_fault, -1] = (ids[at_fault, -1] + 1) % 50
        return State(F.one_hot(ids, self.vocabulary.size).float() * 50)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_examples_count_where_they_left_and_steps_are_averaged(split, vocabulary, runtime, size):
    """Example i leaves after step 1 + i % 3; 4 and 5 are wrong before the last step, and only 5 waits for that."""
    steps = {}

    def rule(model, batch, state, last):
        steps[id(model)] = 1 if last is None else steps[id(model)] + 1
        return batch.tokens[:, 0] % 3 < steps[id(model)]

    batches = evaluator.batches(split, vocabulary, 1.0, 0, size)
    counts, taken = evaluator.halted(Recurring(vocabulary, wrong=(4, 5)), batches, rule, runtime)
    assert taken.tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1] and counts.exact.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    found = evaluator.halting_summary(counts, taken, split.group)
    assert set(found) == {"nll", "token_accuracy", "exact", "steps"}
    assert found["steps"]["mean"] == pytest.approx(1.9) and found["steps"]["n"] == 10 and found["exact"]["mean"] == 0.9
    assert 1 < found["steps"]["low"] < 1.9 < found["steps"]["high"] < 3


def test_a_rule_that_the_model_cannot_follow_names_the_setting(split, vocabulary, runtime):
    batches = evaluator.batches(split, vocabulary, 1.0, 0, 4)
    with pytest.raises(ConfigError, match=r"evaluate.run.halts: halting.by_learning needs a core that learns to halt"):
        evaluator.halted(Recurring(vocabulary, wrong=(4,)), batches, by_learning, runtime)
