"""Operations of an answer, against what matrix products of these sizes take."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.refined_lm import RefinedLM
from components.refiners.core import recur
from components.refiners.hybrid import Hybrid
from components.refiners.refiner import SlotRefiner
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.evaluation import operations
from pipeline.evaluation.operations import EXAMPLES, add_operations, of_depths, of_restarts
from pipeline.training import flops

DIM, LAYERS, VOCAB, SEQUENCE = 16, 2, 30, 12
WORDS = Vocabulary(VOCAB, VOCAB - 1, VOCAB - 2, SEQUENCE, "text")


@dataclass
class Examples:
    """Prepared data in memory: 20 rows, of lengths 6 and 12 by turns, whose last four tokens are the answer."""

    vocabulary: Vocabulary

    def split(self, name):
        lengths = torch.tensor([6, 12]).repeat(10)
        places = torch.arange(SEQUENCE).expand(20, -1)
        valid = places < lengths[:, None]
        return Split(
            tokens=torch.ones(20, SEQUENCE, dtype=torch.int32), response=valid & (places >= lengths[:, None] - 4),
            group=torch.arange(20), uid=torch.arange(20), valid=valid,
        )  # fmt: skip


@pytest.fixture
def models():
    base = TinyLM(vocab=VOCAB, seq=SEQUENCE, dim=DIM, layers=LAYERS, heads=2)
    base.init_weights(torch.Generator().manual_seed(0))
    refined = {}
    for steps in (1, 4):
        refined[steps] = RefinedLM(base, SlotRefiner(DIM, heads=2, steps=steps))
        refined[steps].refiner.init_weights(1.0, torch.Generator().manual_seed(0))
    return {"frozen": base.eval(), "one": refined[1].eval(), "four": refined[4].eval()}


@pytest.fixture
def counted(models, runtime):
    def counted(measures, decodes, vocabulary=WORDS):
        metrics = {name: {m: {} for m in measures} for name in models}
        for values in metrics.values():
            for measure, (_, passes, _, _) in decodes.items():
                values[measure][f"decode_{passes}"] = {}
        add_operations(metrics, Examples(vocabulary), models, measures, decodes, 0, runtime)
        return metrics

    return counted


def layers_of(length):
    """Four square matrices and an MLP of four times the width, and attention among all tokens."""
    return LAYERS * (2 * length * (4 + 8) * DIM**2 + 4 * length * length * DIM)


def mean_over_examples(work):
    """Eight of twenty rows in the order of length: four of each."""
    return (EXAMPLES // 2 * work(6) + EXAMPLES // 2 * work(12)) // EXAMPLES


def test_a_backbone_takes_its_layers_and_the_head_at_what_is_masked(counted):
    found = counted({"all": ("test", 1.0), "half": ("test", 0.5)}, {})["frozen"]
    for measure, masked in (("all", 4), ("half", 2)):
        expected = mean_over_examples(lambda length, masked=masked: layers_of(length) + 2 * masked * DIM * VOCAB)
        assert found[measure] == {"flops_per_answer": expected}


def test_each_recursion_step_adds_as_much(counted):
    found = {name: values["all"]["flops_per_answer"] for name, values in counted({"all": ("test", 1.0)}, {}).items()}
    a_step = found["one"] - found["frozen"]
    assert a_step > 0 and found["frozen"] + a_step < found["four"] <= found["frozen"] + 4 * a_step


def test_a_decode_takes_all_its_passes_and_reads_every_position(counted):
    found = counted({"all": ("test", 1.0)}, {"all": ("test", 8, 1, 3)})["frozen"]["all"]
    assert found["decode_8"]["flops_per_answer"] == 8 * mean_over_examples(lambda n: layers_of(n) + 2 * n * DIM * VOCAB)


@pytest.mark.parametrize(
    ("measures", "decodes", "sizes"),
    [
        ({"all": ("test", 1.0)}, {}, 2),  # two lengths, four masked in each
        ({"half": ("test", 0.5), "all": ("test", 1.0)}, {}, 4),
        ({"all": ("test", 1.0)}, {"all": ("test", 8, 1, 3)}, 4),
    ],
)
def test_examples_that_must_take_as_many_are_counted_once(models, counted, monkeypatch, measures, decodes, sizes):
    """Not those of a model that computes what their tokens call for: each of eight."""
    models["some_chunks"] = RefinedLM(models["frozen"], Hybrid(DIM, partial(SlotRefiner, heads=2, steps=2), chunk=2)).eval()
    runs, count = [], flops.count
    monkeypatch.setattr(flops, "count", lambda work: runs.append(work) or count(work))
    counted(measures, decodes)
    assert len(runs) == 3 * sizes + EXAMPLES * (len(measures) + len(decodes))


def test_what_is_counted_changes_no_model(models, counted):
    before = {name: value.clone() for name, value in models["four"].state_dict().items()}
    counted({"all": ("test", 1.0)}, {})
    assert all(torch.equal(value, before[name]) for name, value in models["four"].state_dict().items())
    assert flops.count(lambda: None) == 0


@pytest.mark.parametrize("depths", [(1, 4), (2, 3, 7), (16, 5)])
def test_a_depth_takes_what_a_recursion_of_that_length_takes(models, counted, runtime, depths):
    """Counted for the steps beyond the model's own too, which are reckoned from the first of them."""
    look = ("test", 1.0)
    told = of_depths(Examples(WORDS), models["four"], look, depths, 0, runtime)
    for steps, number in zip(depths, told, strict=True):
        models["four"].set_steps(steps if steps > 1 else None)
        model = models["four"] if steps > 1 else models["one"]
        expected = of_depths(Examples(WORDS), model, look, (steps,), 0, runtime)
        models["four"].set_steps(4)
        assert expected == [number]


def test_restarts_share_what_is_made_once_and_all_are_read_out(models, runtime):
    """The trunk once; steps and readout as often as there are restarts."""
    look, model, restarts = ("test", 1.0), models["four"], (1, 2, 5)
    told = of_restarts(Examples(WORDS), model, look, 3, restarts, 0, runtime)

    def run(number, batch):
        condition, carry, layout = model.begin(batch)
        for _ in range(number):
            *_, last = recur(model.step, range(3), carry, condition, layout, False)
            model.readout(last.hidden[batch.masked])

    expected = [operations._mean(model, Examples(WORDS), *look, 0, runtime, partial(run, number)) for number in restarts]
    assert told == pytest.approx(expected, abs=len(restarts))  # each is rounded down
