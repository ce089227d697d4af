"""Evaluation: the same masks for every model and batch size, counts that a known model makes known, paired intervals."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import measure
from tests.support.known import Known


@pytest.fixture
def split(rows):
    return rows(10)


def counts(model, split, vocabulary, runtime):
    batches = evaluator.batches(split, vocabulary, 1.0, 0, 4)
    return measure(Compared({"it": model}, runtime), batches, "measure")["it"].steps


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


# Means


def test_the_summary_is_of_the_last_step_with_every_step_beside(split, vocabulary, runtime):
    found = evaluator.summary(counts(Known(vocabulary, steps=2, wrong=[0]), split, vocabulary, runtime), split.group)
    assert found["exact"]["mean"] == 1 and found["exact"]["n"] == 10
    assert [v["mean"] for v in found["exact_by_step"]] == [0.9, 1.0]
    assert [v["mean"] for v in found["token_accuracy_by_step"]] == [39 / 40, 1.0]
    assert found["nll_by_step"][0]["mean"] > found["nll"]["mean"] == found["nll_by_step"][-1]["mean"]


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


def decoded(model, split, vocabulary, runtime, steps, blocks):
    models = Compared({"it": model}, runtime)
    return evaluator.decode(models, split, vocabulary, "decode", steps=steps, blocks=blocks, size=3)["it"]


@pytest.mark.parametrize(("steps", "blocks"), [(1, 1), (2, 1), (4, 2)])
def test_decoding_a_perfect_model_gives_the_answers(split, vocabulary, runtime, steps, blocks):
    tokens, found = decoded(Known(vocabulary), split, vocabulary, runtime, steps, blocks)
    assert torch.equal(tokens, split.tokens.long()) and found["exact"]["mean"] == found["token_accuracy"]["mean"] == 1


def test_decoding_counts_the_answer_alone(split, vocabulary, runtime):
    _, found = decoded(Known(vocabulary, always_wrong=[4]), split, vocabulary, runtime, 1, 1)
    assert found["exact"]["mean"] == 0.9 and found["token_accuracy"]["mean"] == pytest.approx(39 / 40)


def test_a_trace_shows_every_step_and_leaves_the_prompt(split, vocabulary, runtime):
    trace = evaluator.trace(Compared({"it": Known(vocabulary, steps=2, wrong=[7])}, runtime), split, vocabulary)[0]["it"]
    assert len(trace) == 10 and {len(steps) for steps in trace} == {2}
    assert trace[7][0]["ids"] == [7, 7, 7, 7, 7, 8] and trace[7][1]["ids"] == [7] * 6
    assert all(0.99 < p <= 1 for p in trace[7][1]["probability"])


def test_a_trace_never_shows_the_mask(rows, vocabulary, runtime):
    class Masking(Known):
        def readout(self, state):
            return F.one_hot(torch.full(state.shape[:-1], vocabulary.mask_id), vocabulary.size).float() * 50 + state / 50

    trace = evaluator.trace(Compared({"it": Masking(vocabulary)}, runtime), rows(3), vocabulary)[0]["it"]
    assert [steps[0]["ids"] for steps in trace] == [[i] * 6 for i in range(3)]
