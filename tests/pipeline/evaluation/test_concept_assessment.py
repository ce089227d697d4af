"""Comparing embeddings: pairs, summaries and differences; whole evaluations run in tests/stages/test_concepts.py."""

import pytest
import torch

from components.inference.retrieval import METRICS, Scores
from pipeline.corpora.prepared import Split
from pipeline.evaluation.concept_assessment import baselines, compare, groups, pairs, summary, targets


def scored(shift=0.0, n=30):
    values = torch.linspace(0, 0.5, n, dtype=torch.float64)
    return Scores(*(values + shift + i for i in range(len(METRICS))))


def test_a_trained_model_is_compared_with_every_baseline_that_is_there():
    found = pairs(["frozen", "warmup", "copy_previous"])
    assert found == [("warmup", "frozen"), ("warmup", "copy_previous")]


def test_a_summary_has_every_metric_of_every_step_and_the_last_on_top():
    group = torch.arange(30) // 3
    found = summary([scored(), scored(0.1)], group)
    assert set(found) == {*METRICS, *(f"{name}_by_step" for name in METRICS)}
    for i, name in enumerate(METRICS):
        one, two = found[f"{name}_by_step"]
        assert found[name] == two and two["mean"] == pytest.approx(one["mean"] + 0.1) == pytest.approx(0.35 + i)
        assert one["low"] < one["mean"] < one["high"] and one["n"] == 30


def test_a_difference_is_paired():
    found = compare(scored(0.1), scored(), torch.arange(30))
    assert set(found) == set(METRICS)
    assert all(v["mean"] == pytest.approx(0.1) for v in found.values())
    assert found["squared_error"]["low"] == pytest.approx(found["squared_error"]["high"])
    share = 1 - 0.025 ** (1 / 30)  # all 30 agree: so many of all could say anything else
    for name, width in (("cosine", 2), ("retrieval_1", 1), ("retrieval_5", 1)):
        assert found[name]["low"] == pytest.approx(0.1 - share * (0.1 + width))
        assert found[name]["high"] == pytest.approx(0.1 + share * (width - 0.1))


class Rows:
    """A table whose embedding of sentence i is (i, 10 i)."""

    def __init__(self):
        self.head = torch.nn.Linear(2, 9, bias=False)
        self.head.weight = torch.nn.Parameter(torch.arange(9.0)[:, None] * torch.tensor([1.0, 10.0]))

    def raw(self, states):
        return states


def test_baselines_are_the_previous_sentence_and_the_mean_of_those_before():
    tokens = torch.tensor([[1, 2, 6, 7, 8], [4, 5, 8, 8, 8]], dtype=torch.int32)
    valid = torch.arange(5) < torch.tensor([[4], [2]])
    split = Split(tokens, valid & (torch.arange(5) > 0), torch.tensor([5, 9]), valid)
    previous, mean = baselines(Rows(), split)
    assert targets(split).tolist() == [2, 6, 7, 5] and groups(split).tolist() == [5, 5, 5, 9]
    assert previous.tolist() == [[1, 10], [2, 20], [6, 60], [4, 40]]
    assert mean.tolist() == [[1, 10], [1.5, 15], [3, 30], [4, 40]]
