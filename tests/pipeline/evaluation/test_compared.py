"""Models compared: layers that no model trained run once a batch, every number is the one of each model by itself."""

from collections import Counter

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.inference.likelihood import Likelihood
from components.inference.revising import least_probable
from components.inference.sampling import Sampler
from pipeline.corpora.prepared import Prepared
from pipeline.evaluation import evaluator
from pipeline.evaluation.answer_likelihood import sampled
from pipeline.evaluation.assessment import load_models
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import measure
from pipeline.machine import snapshots
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import open_phases
from pipeline.progress import Progress

PHASES = {"warmup": "warmup", "joint": "joint", "control_warmup": "controls/warmup", "control_backbone": "controls/backbone"}
SIZE = 7


@pytest.fixture
def models(finished, runtime):
    backbone = Backbone(finished / "data/backbone")
    folders = {name: str(finished / "outputs" / folder) for name, folder in PHASES.items()}
    return load_models(backbone, open_phases(folders, backbone), runtime)


@pytest.fixture
def together(models, runtime):
    return Compared(models, runtime)


@pytest.fixture
def apart(models, runtime):
    """The same models, none of which is the one that others share with."""
    return Compared({"its " + name: model for name, model in models.items()}, runtime)


@pytest.fixture
def data(finished):
    return Prepared(finished / "data/prepared")


@pytest.fixture
def runs(monkeypatch):
    """How often each span of the backbone's layers ran, one that ends in the middle or begins there told apart."""
    counter, through = Counter(), TinyLM.layers

    def counting(self, x, attention, start, stop, *more):
        counter[start, stop] += start < stop
        return through(self, x, attention, start, stop, *more)

    monkeypatch.setattr(TinyLM, "layers", counting)
    return counter


def masked(data, ratio=0.5):
    return evaluator.batches(data.split("test_5"), data.vocabulary, ratio, 0, SIZE)


def test_the_trunk_runs_once_a_batch_for_all_who_share_it(together, apart, data, runs):
    """Frozen, warmup and its control share every layer; joint and the backbone that was trained on have layers of their own."""
    batches = list(masked(data))
    measure(together, batches, "measure")
    assert set(together.above) == {"frozen", "warmup", "control_warmup"} and together.trunk.split == 2
    assert +runs == {(0, 2): 3 * len(batches)}  # once for the three, once for each of the two
    runs.clear()
    measure(apart, batches, "measure")
    assert +runs == {(0, 2): 5 * len(batches)}


def test_a_tail_runs_for_each_model_above_what_they_share(models, runtime, data, runs):
    pair = Compared({name: models[name] for name in ("frozen", "joint")}, runtime)
    measure(pair, masked(data), "measure")
    batches = -(-len(data.split("test_5")) // SIZE)
    assert +runs == {(0, 1): batches, (1, 2): 2 * batches}


def test_measures_are_those_of_each_model_by_itself(together, apart, data):
    ours, plain = (measure(models, masked(data), "measure", statistics=True) for models in (together, apart))
    assert set(ours) == {"frozen", *PHASES}
    for name, mine in ours.items():
        its = plain["its " + name]
        assert len(mine.steps) == len(its.steps) == (1 if name in ("frozen", "control_backbone") else 4)
        for one, other in zip(mine.steps, its.steps, strict=True):
            assert all(torch.equal(getattr(one, field), getattr(other, field)) for field in ("nll", "correct", "tokens", "exact"))
        assert mine.statistics == its.statistics and bool(mine.statistics) == (len(mine.steps) > 1)


def test_likelihoods_are_those_of_each_model_by_itself(together, apart, data):
    likelihood, split = Likelihood(items=10, samples=3), data.split("test_5").take(slice(0, 10))
    settings = (split, data.vocabulary, likelihood.samples, SIZE, 0, Progress("likelihood"))
    ours, plain = sampled(together, *settings), sampled(apart, *settings)
    assert all(torch.equal(values, plain["its " + name]) and values.shape[:2] == (10, 3) for name, values in ours.items())


@pytest.mark.parametrize("passes", [1, 3])
def test_decoded_answers_are_those_of_each_model_by_itself(together, apart, data, runs, passes):
    """The first pass, before anything is decoded, is shared; in later ones each model reads what it wrote itself."""
    split = data.split("test_5").take(slice(0, 10))
    ours = evaluator.decode(together, split, data.vocabulary, "decode", steps=passes, blocks=1, size=SIZE)
    assert +runs == {(0, 2): 2 * (3 + 5 * (passes - 1))}
    plain = evaluator.decode(apart, split, data.vocabulary, "decode", steps=passes, blocks=1, size=SIZE)
    for name, (tokens, metrics) in ours.items():
        assert torch.equal(tokens, plain["its " + name][0]) and metrics == plain["its " + name][1]


@pytest.mark.parametrize("sampler", [Sampler(3, guidance=1.5), Sampler(4, revise=least_probable), Sampler(4, 2, threshold=0.4)])
def test_filled_answers_are_those_of_each_model_by_itself(together, apart, data, sampler):
    """With guidance, whose first pass begins with another text, too."""
    split = data.split("test_5").take(slice(0, 10))

    def fill(models):
        batches = evaluator.batches(split, data.vocabulary, 1.0, 0, SIZE)
        return evaluator.fill(models, batches, data.vocabulary, "fill", sampler, None)

    plain = fill(apart)
    for name, parts in fill(together).items():
        for part, other in zip(parts, plain["its " + name], strict=True):
            assert all(torch.equal(part[key], other[key]) for key in ("tokens", "evaluations", "revised"))


def test_traces_are_those_of_each_model_by_itself(together, apart, data):
    split = data.split("test_5").take(slice(0, 3))
    ours, plain = (evaluator.trace(models, split, data.vocabulary)[0] for models in (together, apart))
    assert all(trace == plain["its " + name] for name, trace in ours.items()) and len(ours["joint"][0]) == 4


def test_a_killed_stage_computes_no_finished_piece_again(together, data, runs, tmp_path, monkeypatch):
    """Killed when one model of a batch was done: only the others run, over states that are computed once more."""
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path))
    batch, done = next(masked(data)), []

    def work(model, batch):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(model)
        return {"rows": batch.tokens.sum(1), "state": model.states(batch)}

    with pytest.raises(KeyboardInterrupt), snapshots.workspace("evaluate", "i" * 64):
        together.on_one(batch, "piece", work)
    assert len(done) == 2
    done, before = [], +runs
    with pytest.raises(KeyboardInterrupt), snapshots.workspace("evaluate", "i" * 64):
        together.on_one(batch, "piece", work)
    assert done == [together.models["joint"], together.above["control_warmup"]] and before[0, 2] == 1
    done.clear()
    runs.clear()
    with snapshots.workspace("evaluate", "i" * 64):
        results = together.on_one(batch, "piece", work)
    assert list(results) == list(together.models) and done == [together.models["control_backbone"]]
    assert +runs == {(0, 2): 1}  # its own; nobody asked for the shared states
    assert torch.equal(results["warmup"]["state"], together.models["warmup"].states(batch))


def test_states_are_computed_when_the_first_model_wants_them(together, data, runs):
    seen = []

    def work(model, batch):
        seen.append(batch.hidden)
        return {}

    together.on_one(next(masked(data)), "piece", work)
    assert +runs == {(0, 2): 1} and [hidden is None for hidden in seen] == [name not in together.above for name in together.models]
    assert len({id(hidden) for hidden in seen if hidden is not None}) == 1
