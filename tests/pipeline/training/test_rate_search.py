"""A learning rate chosen on validation: each trained as it would be alone, the best stays, and a kill repeats nothing."""

import json
import os
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.backbones.tiny_lm import TinyLM
from components.objective.masking import exact_count
from components.training.optim import adamw
from pipeline.data.batches import LiveSource
from pipeline.data.loading import TrainLoader, in_order
from pipeline.errors import TrainingError
from pipeline.machine import snapshots
from pipeline.machine.process import Interrupted
from pipeline.training.loop import as_it_is, fit
from pipeline.training.rate_search import search
from pipeline.training.train_state import TrainRun

STEPS = 5
LR = 0.01
SETTINGS = {"steps": STEPS, "validate_every": 2, "save_every": 2, "log_every": 2, "ema": 0.5}


@pytest.fixture
def run_in(rows, vocabulary, runtime, tmp_path):
    """``run_in(name)``: a training run of a new small model that writes to a folder of that name."""

    def run_in(name):
        model = TinyLM(vocab=102, seq=6, dim=8, layers=2, heads=2)
        model.init_weights(torch.Generator().manual_seed(0))
        model.embedding.requires_grad_(False)
        source, out = LiveSource(rows(20), vocabulary, exact_count, 0), tmp_path / name
        out.mkdir()

        def save():
            save_file({k: v.detach().clone() for k, v in model.state_dict().items()}, out / "model.safetensors")

        return TrainRun("controls/x", model, TrainLoader(source, 4, 0), partial(in_order, source, 8), out, save, runtime)

    return run_in


@pytest.fixture
def work(tmp_path, monkeypatch):
    """``work()``: the block's snapshots are kept unless it ends well."""
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return lambda: snapshots.workspace("controls", "k" * 64)


def trains(lr=LR, **settings):
    return partial(fit, optimizer=partial(adamw, lr=lr), **{**SETTINGS, **settings})


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("rates", [(0.01, 1.0, 4.0), (4.0, 0.01)])
def test_each_rate_trains_as_it_would_alone_and_the_least_validation_loss_stays(run_in, rates):
    alone = {}
    for rate in rates:
        run = run_in(f"alone-{rate}")
        alone[rate] = trains(LR * rate)(run), content(run.out)
    searched = search((run := run_in("searched")), rates, trains())
    best = min(rates, key=lambda rate: alone[rate][0].best_loss)
    assert [state.validation for state in searched.states] == [alone[rate][0].validation for rate in rates]
    assert content(run.out) == alone[best][1] and searched.result == alone[best][0]
    facts = searched.facts()
    assert facts["rate"] == best and [trial["rate"] for trial in facts["rates"]] == list(rates)
    assert facts["search_flops"] == sum(state.flops for state, _ in alone.values())
    assert len({trial["best_loss"] for trial in facts["rates"]}) == len(rates)  # a rate does change what is learned


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_one_rate_is_no_search(run_in, rate):
    alone, run = run_in("alone"), run_in("one")
    expected = trains(LR * rate)(alone)
    searched = search(run, (rate,), trains())
    assert searched.result == expected and content(run.out) == content(alone.out)
    assert searched.facts().get("rate") == (None if rate == 1.0 else rate)


@pytest.mark.parametrize("last", [0, STEPS + 2])
def test_after_sigterm_the_next_run_ends_with_the_same_bytes_and_repeats_no_step(run_in, work, last):
    rates, seen, ending = (2.0, 0.5, 1.0), [], False

    def schedule(step, steps):
        seen.append(step)
        if ending and len(seen) == last + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    whole = search((run := run_in("whole")), rates, trains(schedule=schedule))
    expected, ending = content(run.out), True
    seen.clear()
    with pytest.raises(Interrupted), work():
        search(run_in("killed"), rates, trains(schedule=schedule))
    with work():
        searched = search((run := run_in("again")), rates, trains(schedule=schedule))
    assert content(run.out) == expected and searched.facts() == whole.facts()
    assert seen == list(range(STEPS)) * len(rates)


def test_a_rate_at_which_training_breaks_is_left_out(run_in, capsys):
    def breaking(run):
        if run.rate == 8.0:
            raise TrainingError("x: the loss became nan at step 2; nothing was saved yet")
        return trains()(run)

    searched = search((run := run_in("searched")), (8.0, 1.0), breaking)
    assert searched.best == 1 and searched.facts()["rates"][0] == {"rate": 8.0, "best_loss": None, "flops": 0, "validation": []}
    assert json.loads(json.dumps(searched.facts()))["rate"] == 1.0
    expected = run_in("alone")
    trains()(expected)
    assert content(run.out) == content(expected.out)
    assert "the loss became nan at step 2; nothing was saved yet; the search goes on without this rate" in capsys.readouterr().out


def test_where_every_rate_breaks_so_does_the_search(run_in):
    def breaking(run):
        raise TrainingError(f"the loss became nan at a rate of {run.rate}")

    with pytest.raises(TrainingError, match="nan at a rate of 2"):
        search(run_in("searched"), (8.0, 4.0, 2.0), breaking)


def test_a_loop_without_steps_is_run_once(run_in):
    calls = []

    def once(run):
        calls.append(run.rate)
        return as_it_is(run)

    searched = search((run := run_in("off")), (0.5, 2.0), once)
    assert calls == [0.5] and searched.facts() == {} and searched.result.steps == 0
    start = run_in("start").model.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in load_file(run.out / "model.safetensors").items())
