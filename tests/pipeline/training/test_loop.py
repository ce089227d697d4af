"""The training loop on a model of a few hundred weights: accumulation, losses, validation, what is saved, going on, compute."""

import os
import re
import shutil
import signal
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import count, cycle, islice, pairwise

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.objective.losses import masked_cross_entropy
from components.objective.masking import exact_count
from components.objective.objective import Objective
from components.objective.supervision import last_only
from components.training.optim import adamw, muon
from pipeline.corpora.prepared import Vocabulary
from pipeline.data.batches import assemble
from pipeline.errors import DataError, TrainingError
from pipeline.machine import snapshot_writing, snapshots
from pipeline.machine.process import Interrupted
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.training import flops, step_operations
from pipeline.training.curves import read
from pipeline.training.loop import as_it_is, fit, validation_losses
from pipeline.training.step_guard import StepGuard
from pipeline.training.train_state import TrainRun

VOCABULARY = Vocabulary(size=9, mask_id=8, pad_id=8, sequence=6, rendering="text")


class Fixed:
    """The given microbatches, over and over."""

    seed = 0

    def __init__(self, *batches):
        self.batches = batches

    def steps(self, first, accumulation):
        for step in count(first):
            yield [self.batches[i % len(self.batches)] for i in range(step * accumulation, (step + 1) * accumulation)]

    def sequences(self, accumulation):
        return sum(map(len, islice(cycle(self.batches), accumulation)))

    def state_dict(self, step, accumulation):
        return {"step": step, "batches": len(self.batches)}

    def load_state_dict(self, state, accumulation):
        if state != self.state_dict(state["step"], accumulation):
            raise DataError("another order")


def batch(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(8, (n, 6), generator=generator)
    response = torch.arange(6).expand(n, 6) >= 2
    masked, weights = exact_count(response, torch.rand(n, 7, generator=generator, dtype=torch.float64))
    return assemble(tokens, masked, weights, None, VOCABULARY)


def part(whole, rows):
    return replace(whole, **{k: v[rows] for k, v in vars(whole).items() if isinstance(v, torch.Tensor)})


def broken(whole, value):
    return replace(whole, weights=torch.where(whole.masked, torch.tensor(value), whole.weights))


def plain_descent(named, lr=0.1):
    return torch.optim.SGD([{"params": [parameter for _, parameter in named], "peak": lr}], lr=lr)


def constant(step, steps):
    return 1.0


@pytest.fixture
def model():
    lm = TinyLM(vocab=9, seq=6, dim=8, layers=1, heads=2)
    lm.init_weights(torch.Generator().manual_seed(0))
    return lm


@pytest.fixture
def train(model, runtime, tmp_path):
    """``train(batches, ...)``: fit over the given batches, validating on one other; the model into ``out`` or "model"."""

    def train(*batches, validation=None, out=None, loss=masked_cross_entropy, **settings):
        save = partial(save_backbone, out or tmp_path / "model", model, VOCABULARY)
        settings = {"steps": 4, "optimizer": partial(adamw, lr=1e-2), "schedule": constant, **settings}
        held_out = [validation or batch(seed=9)]
        run = TrainRun("test", model, Fixed(*batches), lambda: enumerate(held_out), out or tmp_path, save, runtime)
        objective = partial(Objective, supervision=last_only, loss=loss)
        return fit(run, objective=objective, **settings)

    return train


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Steps


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5), (1, 1, 6), (2, 2, 2, 2)])
def test_accumulation_takes_the_step_of_the_whole_batch(train, model, sizes):
    start, whole = model.state_dict(), batch(8)
    start = {name: value.clone() for name, value in start.items()}
    train(whole, steps=1, optimizer=plain_descent)
    expected = weights(model)
    model.load_state_dict(start)
    bounds = torch.tensor((0, *sizes)).cumsum(0).tolist()
    train(
        *(part(whole, slice(a, b)) for a, b in pairwise(bounds)),
        steps=1,
        accumulation=len(sizes),
        optimizer=plain_descent,
    )
    moved = torch.cat([value.flatten() for value in start.values()])
    assert torch.allclose(weights(model), expected, atol=1e-6, rtol=0)
    assert (expected - moved).abs().max() > 1e-4


def test_counting_operations_leaves_the_first_step_alone(train, model):
    """Operations are counted over the first batches: no gradient of theirs must linger."""
    start = weights(model).clone()
    whole = batch(8)
    logits = model.readout(model.states(whole)[whole.masked])
    nll = torch.nn.functional.cross_entropy(logits, whole.targets[whole.masked], reduction="none")
    ((nll * whole.weights[whole.masked]).sum() / 8).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    train(whole, steps=1, optimizer=plain_descent, clip=1e9)
    assert torch.allclose(weights(model), start - 0.1 * gradient, atol=1e-6)


def test_the_gradient_is_clipped(train, model):
    start = weights(model).clone()
    train(batch(), steps=1, optimizer=plain_descent, clip=1e-3)
    assert float((weights(model) - start).norm()) == pytest.approx(1e-4, rel=1e-3)  # lr 0.1 times the largest norm


def test_ten_steps_lower_the_training_loss(train, tmp_path):
    train(batch(), steps=10)
    losses = read(tmp_path / "curves.csv")["loss"]
    assert len(losses) == 10 and losses[-1] < 0.7 * losses[0]


def test_a_line_tells_the_rate_and_no_file_does(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flops, "PATIENCE", 0.0)
    train(batch(), steps=4, log_every=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if " loss " in line and "validation" not in line]
    assert len(lines) == 2 and all(re.search(r"steps/s, .* left \| [\d.e-]+ TF/s, MFU [\d.]+%$", line) for line in lines)
    assert "TF" not in (tmp_path / "curves.csv").read_text()


def test_curves_have_a_row_for_every_step(train, tmp_path):
    train(batch(), steps=7, log_every=3, validate_every=5)
    columns = read(tmp_path / "curves.csv")
    assert columns["step"] == list(range(7))
    assert list(columns) == ["step", "loss", "loss/step_0", "lr", "grad_norm"]
    assert columns["loss"] == columns["loss/step_0"]  # one step, nothing else in the loss


def test_the_recorded_learning_rate_follows_the_schedule(train, tmp_path):
    train(batch(), optimizer=plain_descent, schedule=lambda step, steps: (step + 1) / steps)
    assert read(tmp_path / "curves.csv")["lr"] == pytest.approx([0.025, 0.05, 0.075, 0.1])


def test_the_recorded_learning_rate_is_the_one_in_use(train, tmp_path):
    train(batch(), optimizer=partial(adamw, lr=1e-2))
    assert read(tmp_path / "curves.csv")["lr"] == pytest.approx([1e-2] * 4)


def test_training_leaves_the_model_in_training_mode_and_frozen_weights_alone(train, model):
    model.embedding.requires_grad_(False)
    before = model.embedding.weight.clone()
    train(batch(), steps=3, validate_every=2)
    assert torch.equal(model.embedding.weight, before) and model.training


# Losses that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(train, tmp_path, value, log_every):
    good = batch()
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step 5; the last good checkpoint is of step 4. Lower"):
        train(*[good] * 4, broken(good, value), validation=good, steps=20, validate_every=2, log_every=log_every)
    saved = Backbone(tmp_path / "model").model()
    assert bool(weights(saved).isfinite().all())


def test_before_the_first_validation_nothing_was_saved(train, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss became nan at step 2; nothing was saved yet"):
        train(batch(), broken(batch(), float("nan")), steps=20, validate_every=10, log_every=1)
    assert not (tmp_path / "model").exists()


def test_states_that_are_not_finite_stop_too(train, model):
    whole = batch()
    hidden = torch.full((8, 6, 8), float("nan"))
    with pytest.raises(TrainingError, match=r"the loss became nan at step 3"):
        train(whole, whole, replace(whole, hidden=hidden), steps=5, log_every=1)


def test_a_validation_loss_that_is_not_finite_stops(train):
    with pytest.raises(TrainingError, match=r"the validation loss became nan at step 2; nothing was saved yet"):
        train(batch(), validation=broken(batch(), float("nan")), validate_every=2)


def test_no_steps_at_all_are_refused(train):
    with pytest.raises(ValueError, match=r"loop.fit.steps must be at least 1, got 0"):
        train(batch(), steps=0)


def test_the_rows_up_to_the_bad_step_are_on_disk(train, tmp_path):
    with pytest.raises(TrainingError, match="at step 3"):
        train(batch(), batch(), broken(batch(), float("nan")), steps=20, log_every=1)
    assert read(tmp_path / "curves.csv")["step"] == [0, 1, 2]


# Validation


def test_validation_averages_over_sequences(model, runtime):
    """Two batches of different sizes give what one batch of all rows gives."""
    whole = batch(8)
    (one,) = validation_losses(model, enumerate([whole]), runtime, Objective(1))
    (two,) = validation_losses(model, enumerate([part(whole, slice(0, 3)), part(whole, slice(3, 8))]), runtime, Objective(1))
    assert two == pytest.approx(one, rel=1e-5)


def test_validation_adds_up_by_number(model, runtime):
    """The same bits in whatever order batches come: their losses are of sizes that make the order matter."""
    several = [batch(seed=seed) for seed in range(9)]
    numbered = [(n, replace(one, weights=one.weights * 10.0 ** (2 * n))) for n, one in enumerate(several)]
    assert validation_losses(model, iter(numbered), runtime, Objective(1)) == validation_losses(
        model, reversed(numbered), runtime, Objective(1)
    )
    assert model.training


def test_it_validates_every_so_often_and_at_the_end(train):
    result = train(batch(), steps=7, validate_every=3)
    assert [entry["step"] for entry in result.validation] == [3, 6, 7]


def test_patience_stops_early(train):
    """At learning rate 0 the first validation stays the best."""
    result = train(batch(), steps=100, optimizer=partial(adamw, lr=0.0), validate_every=2, patience=2)
    assert result.best_step == 2 and result.steps == result.validation[-1]["step"] < 12


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_counts_the_validations_without_a_better_loss(train, patience):
    result = train(batch(), steps=100, optimizer=partial(adamw, lr=0.0), validate_every=2, patience=patience)
    assert len(result.validation) == 1 + patience


def test_without_patience_it_never_stops_early(train):
    assert train(batch(), steps=20, optimizer=partial(adamw, lr=0.0), validate_every=2).steps == 20


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_weights_are_saved_not_the_last(train, model, runtime, tmp_path, ema):
    """Descent for six steps, then ascent."""
    same = batch()
    result = train(same, validation=same, steps=16, schedule=lambda step, _: 1.0 if step < 6 else -3.0, validate_every=2, ema=ema)
    losses = {entry["step"]: entry["loss"] for entry in result.validation}
    assert result.best_step < 16 and result.best_loss == min(losses.values()) < losses[16]
    assert result.best_loss == losses[result.best_step]
    (saved,) = validation_losses(Backbone(tmp_path / "model").model(), enumerate([same]), runtime, Objective(1))
    assert saved == result.best_loss


def test_the_average_is_saved_while_training_goes_on_from_the_weights_themselves(train, model, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train(batch(), steps=5, validate_every=1, ema=0.9)
    averaged, ended = weights(Backbone(tmp_path / "model").model()), weights(model).clone()
    model.load_state_dict(start)
    train(batch(), steps=5, validate_every=1, ema=0.0)
    assert torch.equal(weights(model), ended) and not torch.equal(averaged, ended)


# Going on


@pytest.fixture
def work(tmp_path, monkeypatch):
    """``work()``: the block's snapshots are kept unless it ends well."""
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return lambda: snapshots.workspace("test", "k" * 64)


@pytest.fixture
def content(tmp_path):
    """``content(name)``: every file of a folder."""
    return lambda name: {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}


def test_a_validation_stands_in_its_file_as_soon_as_it_is_done(train, tmp_path, capsys):
    """Rows are those of the state; each is there when the next step begins."""
    rows = []

    def looking(step, steps):
        file = tmp_path / "validation.csv"
        rows.append(file.read_text().splitlines()[1:] if file.is_file() else [])
        return 1.0

    result = train(batch(), steps=7, validate_every=3, schedule=looking)
    assert [len(seen) for seen in rows] == [0, 0, 0, 1, 1, 1, 2]
    columns = read(tmp_path / "validation.csv")
    assert columns["step"] == [3, 6, 7] == [entry["step"] for entry in result.validation]
    assert columns["loss"] == columns["loss/step_0"] == pytest.approx([entry["loss"] for entry in result.validation], rel=1e-8)


def test_what_is_wrong_is_a_line_after_a_validation_and_once(train, capsys):
    train(batch(), steps=60, validate_every=20, clip=1e-6)
    lines = [line for line in capsys.readouterr().out.splitlines() if "health" in line or "validation" in line]
    assert lines[2].startswith("test: health: always clipped (100% of the last 10 steps; median norm ")
    assert lines[2].endswith("; python -m stages doctor says what mends it")
    assert sum("always clipped" in line for line in lines) == 1 and sum("step" in line.split()[1] for line in lines) == 3


def test_another_training_in_the_same_folder_begins_its_validations_anew(train, tmp_path):
    for _ in range(2):
        train(batch(), steps=2, validate_every=1)
        assert read(tmp_path / "validation.csv")["step"] == [1, 2]


BATCHES = [batch(seed=seed) for seed in range(5)]
LONG = {"steps": 12, "validate_every": 4, "log_every": 3, "save_every": 100, "accumulation": 2, "ema": 0.9}


def falling(step, steps):
    return 1.0 - 0.05 * step


def ended_at(step, how):
    """A schedule within which something happens before the optimizer step of that number, from 0."""
    return lambda now, steps: (how() if now == step else None) or falling(now, steps)


def watched(seen):
    """A schedule that notes the steps that were taken."""
    return lambda now, steps: seen.append(now) or falling(now, steps)


def asked_to_end():
    os.kill(os.getpid(), signal.SIGTERM)


def failing():
    raise RuntimeError("power")


@pytest.fixture(params=["at once", "behind"])
def way(request, monkeypatch):
    """A snapshot is written before the training goes on, or while it does."""
    write = snapshot_writing.write_tensors
    if request.param == "behind":
        monkeypatch.setattr(snapshot_writing, "BEHIND", (*snapshot_writing.BEHIND, "cpu"))
        monkeypatch.setattr(snapshot_writing, "write_tensors", lambda *file: time.sleep(0.1) or write(*file))  # steps go on first


AT_ONCE = (*((last, adamw) for last in (0, 2, 3, 8, 10)), (0, muon), (3, muon), (8, muon))
BEHIND = ((3, adamw), (10, muon))


@pytest.mark.parametrize(
    ("way", "last", "optimizer"),
    [*(("at once", *case) for case in AT_ONCE), *(("behind", *case) for case in BEHIND)],
    indirect=["way"],
)
def test_after_sigterm_the_next_run_ends_with_the_same_bytes(train, model, work, content, tmp_path, way, last, optimizer):
    """In the first step, between validations, with one, and in the last step but one."""
    train = partial(train, optimizer=partial(optimizer, lr=1e-2))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected = train(*BATCHES, out=tmp_path / "whole", schedule=falling, **LONG)
    ended = weights(model).clone()
    model.load_state_dict(start)
    before = signal.getsignal(signal.SIGTERM)
    message = rf"test: SIGTERM after step {last + 1} of 12; run it again"
    with pytest.raises(Interrupted, match=message), work():
        train(*BATCHES, out=tmp_path / "parts", schedule=ended_at(last, asked_to_end), **LONG)
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(read(tmp_path / "parts/curves.csv")["step"]) == last + 1
    shutil.rmtree(tmp_path / "parts")  # DVC removes what a stage wrote before it runs it again
    model.load_state_dict(start)
    seen = []
    with work():
        result = train(*BATCHES, out=tmp_path / "parts", schedule=watched(seen), **LONG)
    assert seen == list(range(last + 1, 12)) and asdict(result) == asdict(expected)
    assert torch.equal(weights(model), ended) and content("parts") == content("whole")
    assert not (tmp_path / "scratch").exists()


def test_a_schedulers_warning_ends_a_run_under_its_own_name(train, work):
    with pytest.raises(Interrupted, match=r"^test: SIGUSR1 after step 4 of 12; run it again"), work():
        train(*BATCHES, schedule=ended_at(3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), **LONG)


@pytest.mark.usefixtures("way")
def test_sigterm_in_the_last_step_changes_nothing(train, work):
    with work():
        assert train(*BATCHES, schedule=ended_at(11, asked_to_end), **LONG).steps == 12


@pytest.mark.usefixtures("way")
def test_a_run_that_failed_goes_on_from_its_last_snapshot(train, model, work, content, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {**LONG, "save_every": 5}
    train(*BATCHES, out=tmp_path / "whole", schedule=falling, **settings)
    ended, seen = weights(model).clone(), []
    model.load_state_dict(start)
    with pytest.raises(RuntimeError, match="power"), work():
        train(*BATCHES, out=tmp_path / "parts", schedule=ended_at(7, failing), **settings)
    model.load_state_dict(start)
    with work():
        train(*BATCHES, out=tmp_path / "parts", schedule=watched(seen), **settings)
    assert seen == list(range(5, 12)) and torch.equal(weights(model), ended) and content("parts") == content("whole")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("taken", [4, 7])  # of which the fourth was validated, and so kept
@pytest.mark.parametrize("asked", [False, True])
def test_a_batch_that_cannot_be_had_loses_no_step(train, model, work, content, tmp_path, monkeypatch, taken, asked):
    start, steps = {name: value.clone() for name, value in model.state_dict().items()}, Fixed.steps

    def gone(self, first, accumulation):
        yield from islice(steps(self, first, accumulation), taken)
        if asked:
            asked_to_end()
        raise DataError("no trunk answers")

    train(*BATCHES, out=tmp_path / "whole", schedule=falling, **LONG)
    ended, seen = weights(model).clone(), []
    model.load_state_dict(start)
    message = f"^test: SIGTERM after step {taken} of 12; run it again" if asked else "^no trunk answers$"
    with monkeypatch.context() as patch, pytest.raises(Interrupted if asked else DataError, match=message), work():
        patch.setattr(Fixed, "steps", gone)
        patch.setattr(step_operations, "SEQUENCES", 0)  # four steps are read ahead, not twelve
        train(*BATCHES, out=tmp_path / "parts", schedule=falling, **LONG)
    model.load_state_dict(start)
    with work():
        train(*BATCHES, out=tmp_path / "parts", schedule=watched(seen), **LONG)
    assert seen == list(range(taken, 12)) and torch.equal(weights(model), ended) and content("parts") == content("whole")


def test_a_snapshot_of_another_order_is_refused(train, work):
    with pytest.raises(Interrupted), work():
        train(*BATCHES, schedule=ended_at(3, asked_to_end), **LONG)
    with pytest.raises(DataError, match="another order"), work():
        train(*BATCHES[:3], **LONG)


# Compute


def test_the_budget_sets_the_number_of_steps(train):
    step = train(batch(), steps=1).flops
    assert step > 0
    for budget, steps in ((5 * step, 5), (int(2.6 * step), 3), (1, 1)):
        result = train(batch(), budget=budget, steps=50)
        assert (result.steps, result.flops) == (steps, steps * step)


def test_operations_count_the_steps_that_were_taken(train):
    step = train(batch(), steps=1).flops
    stopped = train(batch(), steps=100, optimizer=partial(adamw, lr=0.0), validate_every=2, patience=1)
    assert stopped.flops == stopped.steps * step < 100 * step


def test_twice_the_sequences_take_twice_the_operations(train):
    whole = batch()
    twice = replace(whole, **{k: torch.cat([v, v]) for k, v in vars(whole).items() if isinstance(v, torch.Tensor)})
    assert train(twice, steps=1).flops == train(whole, whole, steps=1, accumulation=2).flops == 2 * train(whole, steps=1).flops


# The loss


def head_distance(model, hidden, batch, *, compute=True):
    """Something else than cross-entropy."""
    rows = batch.supervised
    return hidden.flatten(0, 1)[rows].square().sum(), torch.zeros(len(rows), dtype=torch.bool)


def test_the_loss_that_is_given_is_trained_on_and_validated(train, runtime, model):
    result = train(batch(8), steps=3, validate_every=1, loss=head_distance, optimizer=partial(plain_descent, lr=0.01))
    found = [entry["loss"] for entry in result.validation]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] > 0
    assert validation_losses(model, enumerate([batch(seed=9)]), runtime, Objective(1, head_distance)) == pytest.approx(
        [found[-1]], rel=1e-5
    )


@pytest.mark.parametrize("loss", [head_distance, masked_cross_entropy])
def test_as_it_is_takes_no_step_and_keeps_the_model(model, runtime, tmp_path, loss):
    before, held_out = weights(model), [batch(seed=9)]
    save = partial(save_backbone, tmp_path / "model", model, VOCABULARY)
    run = TrainRun("test", model, Fixed(batch(8)), lambda: enumerate(held_out), tmp_path, save, runtime)
    result = as_it_is(run, budget=0, objective=partial(Objective, loss=loss))
    (expected,) = validation_losses(model, enumerate(held_out), runtime, Objective(1, loss))
    assert (result.steps, result.flops, result.best_loss) == (0, 0, expected)
    assert torch.equal(weights(Backbone(tmp_path / "model").model()), before)
    assert (tmp_path / "curves.csv").read_text() == "step,loss\n"


# Steps that are refused


def spoilt(model, name, value, at):
    """A schedule that from one step on lets a parameter's gradient have one number that is not finite, with a finite loss."""

    def hook(gradient):
        return gradient.flatten().index_fill(0, torch.tensor([0]), value).reshape(gradient.shape)

    def schedule(step, steps):
        if step == at:
            dict(model.named_parameters())[name].register_hook(hook)
        return 1.0

    return schedule


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("optimizer", [partial(adamw, lr=1e-2), partial(muon, lr=1e-2), plain_descent])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(train, model, work, tmp_path, value, optimizer, clip):
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(batch(), steps=3, optimizer=optimizer, clip=clip)
    expected = weights(model).clone()
    model.load_state_dict(start)
    message = r"test: the gradient of 'norm.weight' became (nan|inf) at step 4; the last good checkpoint is of step 2. Lower"
    with pytest.raises(TrainingError, match=message), work():
        train(
            batch(), steps=9, optimizer=optimizer, clip=clip, schedule=spoilt(model, "norm.weight", value, 3),
            validate_every=2, log_every=50, save_every=4, out=tmp_path / "out",
        )  # fmt: skip
    assert torch.equal(weights(model), expected)
    assert [f.name for f in (tmp_path / "scratch").rglob("step-*")] == ["step-000000002"]


def test_a_device_that_is_not_asked_refuses_the_step_and_all_that_follow():
    """As on a GPU: nothing is read before the host asks for it."""
    named = {name: torch.nn.Parameter(torch.ones(2)) for name in ("a", "b")}
    optimizer = adamw(named.items())
    guard = StepGuard(named, optimizer, clip=1.0)
    guard._waits = False
    for step, value in enumerate((1.0, float("inf"), 1.0, float("nan"))):
        named["a"].grad, named["b"].grad = torch.ones(2), torch.tensor([value, 1.0])
        assert guard.step(step, torch.tensor(0.5))[1] is False
        if step == 0:
            expected = {name: p.detach().clone() for name, p in named.items()}
            moments = [v.clone() for state in optimizer.state_dict()["state"].values() for v in state.values()]
    assert all(torch.equal(named[name], expected[name]) for name in named) and not torch.equal(expected["a"], torch.ones(2))
    after = [v for state in optimizer.state_dict()["state"].values() for v in state.values()]
    assert all(map(torch.equal, moments, after))
    assert guard.refused() == (1, "b")


def test_a_rate_that_is_not_finite_is_refused_and_no_snapshot_is_poisoned(train, model, work):
    start = weights(model).clone()
    with pytest.raises(TrainingError, match=r"loop.fit.schedule gave inf for step 1 of 4, which was not taken"), work():
        train(batch(), schedule=lambda step, steps: float("inf"))
    assert torch.equal(weights(model), start)

    def overflowing(named):
        optimizer = plain_descent(named)
        optimizer.register_step_post_hook(lambda *_: model.norm.weight.data.fill_(float("inf")))
        return optimizer

    with pytest.raises(TrainingError, match=r"'parameter/.*' is not finite after step 1; nothing was saved yet"), work():
        train(batch(), optimizer=overflowing, save_every=1, clip=0.0)


def test_a_snapshot_that_is_not_finite_is_never_continued_from(tmp_path):
    scratch = snapshots.Scratch(tmp_path / "scratch")
    (tmp_path / "out").mkdir()
    for step, value in ((1, 1.0), (2, float("nan"))):
        scratch.save(step, {"parameter/w": torch.tensor([0.0, value])}, {"step": step}, tmp_path / "out")
    assert scratch.load(tmp_path / "out")[1] == {"step": 1}
    assert [f.name for f in (tmp_path / "scratch").iterdir()] == ["step-000000001"]


def test_clip_zero_is_off(train, model):
    start = weights(model).clone()
    train(batch(), steps=1, optimizer=plain_descent, clip=0.0)
    off = weights(model).clone()
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
    train(batch(), steps=1, optimizer=plain_descent, clip=1e9)
    assert torch.equal(weights(model), off) and not torch.equal(off, start)
