"""A second denoising pass measured: that of two recursions by hand, beside the single pass over the same masks."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from components.backbones.tiny_lm import TinyLM
from components.refined_lm import RefinedLM
from components.refiners.memory import Memory
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import measure
from pipeline.evaluation.second_pass import second_passes
from tests.support.cores import CORES, made


@pytest.fixture
def models(vocabulary):
    frozen = TinyLM(vocabulary.size, vocabulary.sequence, 16, 2, 2)
    frozen.init_weights(torch.Generator().manual_seed(0))
    over = {"plain": CORES["slots"], "memory": partial(Memory, refiner=CORES["slots"])}
    return {"frozen": frozen} | {name: RefinedLM(frozen, made(core)).eval() for name, core in over.items()}


def measured(models, split, vocabulary, runtime, ratio, size=4, **right):
    compared = Compared(models, runtime)
    single = measure(compared, evaluator.batches(split, vocabulary, ratio, 0, size), "single")
    counts = {name: reading.steps[-1] for name, reading in single.items()}
    return second_passes(compared, split, vocabulary, counts, "second", ratio=ratio, seed=0, size=size, **right), counts


@torch.no_grad()
def by_hand(model, split, vocabulary, ratio):
    """Mean nll of the masked tokens after the pass in which all were masked."""
    carry = None
    for share in (1.0, ratio):
        (batch,) = evaluator.batches(split, vocabulary, share, 0, len(split))
        condition, fresh, layout = model.begin(batch)
        carry = fresh if carry is None else model.refiner.recalled(fresh, carry)
        for number in range(model.n_steps):
            state = model.step(number, carry, condition, layout)
            carry = state.carry
    logits = model.readout(state.hidden)[batch.masked]
    return F.cross_entropy(logits, batch.targets[batch.masked].long()).item()


def test_what_is_solved_is_said_by_the_rule_of_the_split(models, rows, vocabulary, runtime):
    def right(filled, split):
        return torch.ones(len(filled), dtype=torch.bool)

    plain, ruled = (measured(models, rows(10), vocabulary, runtime, 0.5, **rule)[0]["memory"] for rule in ({}, {"right": right}))
    assert "solved" not in plain and plain["exact"]["mean"] == ruled["exact"]["mean"] < ruled["solved"]["mean"] == 1.0


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_it_is_the_second_of_two_recursions_by_hand(models, rows, vocabulary, runtime, ratio):
    split = rows(10)
    found, counts = measured(models, split, vocabulary, runtime, ratio)
    assert list(found) == ["memory"]
    expected = by_hand(models["memory"], split, vocabulary, ratio)
    assert found["memory"]["nll"]["mean"] == pytest.approx(expected, rel=1e-5)
    alone = float(counts["memory"].nll.sum() / counts["memory"].tokens.sum())
    assert found["memory"]["minus_single"]["nll"]["mean"] == pytest.approx(expected - alone, rel=1e-4, abs=1e-6)
    assert not any(name.endswith("_by_step") for name in found["memory"])


def test_after_a_pass_over_the_same_masks_it_is_the_single_pass(models, rows, vocabulary, runtime):
    """Where nothing was revealed a row has not moved on."""
    found, _ = measured(models, rows(10), vocabulary, runtime, 1.0)
    assert found["memory"]["minus_single"]["nll"]["mean"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_batch_size_changes_nothing(models, rows, vocabulary, runtime, size):
    split = rows(10)
    some, all_at_once = (measured(models, split, vocabulary, runtime, 0.5, s)[0]["memory"]["nll"]["mean"] for s in (size, 10))
    assert some == pytest.approx(all_at_once, rel=1e-5)


def test_without_a_model_that_remembers_nothing_is_run(models, rows, vocabulary, runtime):
    del models["memory"]
    assert measured(models, rows(4), vocabulary, runtime, 0.5)[0] == {}
