"""The loop's ways to supervise a recursion: learned weights, a growing depth, cut gradients, recomputation; and what they cost."""

import shutil
from collections import Counter
from dataclasses import asdict
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from components.backbones.tiny_lm import TinyLM
from components.noise import key
from components.objective.activations import checkpoint, keep
from components.objective.carry_noise import CarryNoise
from components.objective.fixed_point import FixedPoint
from components.objective.lead import RandomLead
from components.objective.objective import Objective
from components.objective.supervision import constant, last_only, learned, linear_decay
from components.recursion import full_gradient, one_step_gradient, truncated_gradient
from components.refined_lm import RefinedLM
from components.refiners.mlp_refiner import MLPRefiner
from components.training.optim import adamw
from pipeline.errors import ConfigError
from pipeline.machine import snapshots
from pipeline.machine.process import Interrupted
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import load_model, save_model
from pipeline.training import flops
from pipeline.training.curves import read
from pipeline.training.gradients import accumulate
from pipeline.training.loop import fit
from pipeline.training.train_state import TrainRun
from tests.pipeline.training.test_loop import VOCABULARY, Fixed, asked_to_end, batch, ended_at, falling, plain_descent, weights

BATCHES = [batch(seed=seed) for seed in range(3)]
LONG = {"steps": 6, "validate_every": 3, "log_every": 2, "ema": 0.9}
STEPS = 3
AIMS = ("supervision", "curriculum", "bptt", "activations", "lead", "noise", "settling")  # the objective's settings


def refined(core, seed=0):
    """A refiner of three steps whose output layer is awake, over a frozen backbone."""
    generator = torch.Generator().manual_seed(seed)
    lm = TinyLM(vocab=9, seq=6, dim=16, layers=1, heads=2)
    lm.init_weights(generator)
    core.init_weights(1.0, generator)
    for name, parameter in core.named_parameters():
        if name == "down.weight":
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return RefinedLM(lm.requires_grad_(False), core)


@pytest.fixture(autouse=True)
def _the_rate_is_not_told(monkeypatch):
    """Counting its operations is most of so short a run; test_loop.py and test_flops.py look at what is told."""
    monkeypatch.setattr(flops.Meter, "summary", lambda *_: "")


@pytest.fixture
def model():
    return refined(MLPRefiner(16, steps=STEPS, chunk=3))


@pytest.fixture
def train(model, runtime, tmp_path):
    """``train(...)``: fit from the model's first weights, whatever was trained before; returns what it ended with. The objective of
    the last one is ``train.objectives[-1]``.
    """
    start = {name: value.clone() for name, value in model.state_dict().items()}
    save_backbone(tmp_path / "backbone", model.backbone, VOCABULARY)

    def train(out="model", **settings):
        model.load_state_dict(start)
        aims = {name: settings.pop(name) for name in AIMS if name in settings}

        def objective(steps):
            train.objectives.append(Objective(steps, **aims))
            return train.objectives[-1]

        save = partial(save_model, tmp_path / out, model, Backbone(tmp_path / "backbone"))
        settings = {"steps": 4, "optimizer": partial(adamw, lr=1e-2), "schedule": falling, **settings}
        held_out = [batch(seed=9)]
        run = TrainRun("test", model, Fixed(*BATCHES), lambda: enumerate(held_out), tmp_path / out, save, runtime)
        return fit(run, objective=objective, **settings)

    train.objectives = []
    return train


@pytest.fixture
def content(tmp_path):
    return lambda name: {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """``work()``: the block's snapshots are kept unless it ends well."""
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    return lambda: snapshots.workspace("test", "k" * 64)


def columns(tmp_path, out="model"):
    return read(tmp_path / out / "curves.csv")


# Killed and gone on

KINDS = {
    "learned": {"supervision": learned},
    "learned_accumulated": {"supervision": learned, "accumulation": 2},
    "curriculum": {"curriculum": 0.8},
    "checkpointed": {"activations": checkpoint, "bptt": truncated_gradient},
    "led": {"lead": RandomLead(8, 0.7), "accumulation": 2},
    "noised": {"noise": CarryNoise(0.5, 0.1), "settling": FixedPoint(), "accumulation": 2},
}


ENDED = [
    ("learned", 1),
    ("learned", 3),
    ("learned_accumulated", 1),
    ("curriculum", 3),
    ("checkpointed", 1),
    ("led", 1),
    ("led", 3),
    ("noised", 1),
]


@pytest.mark.parametrize(("kind", "last"), ENDED)
def test_a_killed_run_ends_with_the_same_bytes(train, model, work, content, tmp_path, kind, last):
    settings = {**LONG, **KINDS[kind]}
    expected = train("whole", **settings)
    ended = weights(model).clone()
    with pytest.raises(Interrupted), work():
        train("parts", **{**settings, "schedule": ended_at(last, asked_to_end)})
    assert not torch.equal(weights(model), ended)
    shutil.rmtree(tmp_path / "parts")
    with work():
        result = train("parts", **settings)
    assert asdict(result) == asdict(expected) and torch.equal(weights(model), ended)
    assert content("parts") == content("whole") and len(content("whole")) == 4


# Learned weights


def test_learned_weights_are_trained_along_by_their_own_rule(train, model, tmp_path):
    """d/ds of exp(-s) loss + s is 1 - loss at s = 0; plain descent from there."""
    train(supervision=learned, steps=1, optimizer=plain_descent, schedule=lambda step, steps: 1.0, clip=1e9)
    losses = [columns(tmp_path)[f"loss/step_{k}"][0] for k in range(STEPS)]
    assert train.objectives[-1].learned.log_variance.tolist() == pytest.approx([-0.1 * (1 - loss) for loss in losses], rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_is_weighted_by_what_was_learned(train, model, tmp_path, accumulation):
    train(supervision=learned, steps=5, accumulation=accumulation)
    found = columns(tmp_path)
    assert found["loss"][0] == pytest.approx(sum(found[f"loss/step_{k}"][0] for k in range(STEPS)), rel=1e-5)  # exp(0) each
    assert found["loss"][4] != pytest.approx(sum(found[f"loss/step_{k}"][4] for k in range(STEPS)), rel=1e-3)
    trained = train.objectives[-1].learned.log_variance
    assert trained.requires_grad and (trained != 0).all()


def test_learned_weights_go_into_snapshots_and_not_into_the_model(train, model, work, tmp_path):
    with pytest.raises(Interrupted), work():
        train(supervision=learned, steps=6, validate_every=2, schedule=ended_at(4, asked_to_end))
    (snapshot,) = (tmp_path / "scratch").rglob("step-000000005/state.safetensors")
    snapshotted = load_file(snapshot)["parameter/objective.learned.log_variance"]
    assert snapshotted.any() and torch.equal(snapshotted, train.objectives[-1].learned.log_variance.detach())
    saved = load_model(tmp_path / "model", Backbone(tmp_path / "backbone"), "warmup")
    assert not any("log_variance" in name for name in load_file(tmp_path / "model/model.safetensors"))
    assert saved.refiner.state_dict().keys() == model.refiner.state_dict().keys()


def test_learned_weights_have_no_curriculum(train):
    with pytest.raises(ConfigError, match=r"curriculum grows given weights; supervision\.learned finds its own"):
        train(supervision=learned, curriculum=0.5)


# Curriculum


def supervised(found, step, schedule=linear_decay):
    """How many recursion steps a row's loss is the weighted sum of."""
    losses = [found[f"loss/step_{k}"][step] for k in range(STEPS)]
    sums = [sum(w * loss for w, loss in zip(schedule(k), losses, strict=False)) for k in range(1, STEPS + 1)]
    return [depth for depth, total in enumerate(sums, 1) if total == pytest.approx(found["loss"][step], rel=1e-5)]


@pytest.mark.parametrize(
    ("curriculum", "depths"),
    [(0.0, [3] * 12), (1.0, [1] * 4 + [2] * 4 + [3] * 4), (0.5, [1] * 2 + [2] * 2 + [3] * 8), (0.25, [1, 2, 3] + [3] * 9)],
)
def test_supervision_grows_from_the_first_step_to_all(train, tmp_path, curriculum, depths):
    train(steps=12, curriculum=curriculum)
    found = columns(tmp_path)
    assert [supervised(found, step) for step in range(12)] == [[depth] for depth in depths]


def test_a_curriculum_trains_otherwise_and_reports_every_step(train, model, tmp_path):
    train(steps=4, curriculum=1.0)
    ended = weights(model).clone()
    assert len(columns(tmp_path)["loss/step_2"]) == 4
    train(steps=4)
    assert not torch.equal(weights(model), ended)


# Memory and gradients


# Pairs: that no bit of a gradient changes for any pair is tested in components/objective/test_objective.py.
@pytest.mark.parametrize(
    ("bptt", "supervision"),
    [
        (full_gradient, linear_decay),
        (full_gradient, learned),
        (truncated_gradient, learned),
        (truncated_gradient, last_only),
        (one_step_gradient, linear_decay),
        (one_step_gradient, last_only),
    ],
)
def test_recomputation_ends_with_the_same_bytes(train, content, bptt, supervision):
    for name, activations in (("kept", keep), ("again", checkpoint)):
        train(name, bptt=bptt, supervision=supervision, activations=activations)
    assert content("kept") == content("again") and len(content("kept")) == 4


def test_where_the_gradient_is_cut_decides_what_is_learned(train, model, tmp_path):
    found, first = [], []
    for bptt in (full_gradient, truncated_gradient, one_step_gradient):
        train(bptt=bptt)
        found.append(weights(model).clone())
        first.append([columns(tmp_path)[f"loss/step_{k}"][0] for k in range(STEPS)])
    assert first[0] == first[1] == first[2]  # where it is cut changes no value
    assert not any(torch.equal(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


# Operations


def counted(model, runtime, depths):
    """Mean operations of a gradient step over the first twelve batches and the given numbers of supervised steps."""
    total = 0
    for depth, times in Counter(depths).items():
        objective = Objective(STEPS, supervision=lambda steps, depth=depth: [*linear_decay(depth), *[0.0] * (steps - depth)])
        for number in range(12):
            one = partial(accumulate, model, objective, [BATCHES[number % 3]], runtime, progress=1.0, statistics=False)
            total += times * flops.count(partial(one, sequences=8, seed=0, step=number))
    return total // (12 * len(depths))


@pytest.mark.parametrize(("curriculum", "depths"), [(0.5, [1] * 2 + [2] * 2 + [3] * 8), (1.0, [1] * 4 + [2] * 4 + [3] * 4)])
def test_operations_of_a_growing_depth_are_those_of_the_depths_that_are_trained(train, model, runtime, curriculum, depths):
    found = train(steps=12, curriculum=curriculum).flops_per_step
    assert found == counted(model, runtime, depths)
    assert 0.3 < found / train(steps=12).flops_per_step < 0.97
    assert counted(model, runtime, [STEPS]) == train(steps=12).flops_per_step


def test_a_budget_buys_more_steps_of_a_growing_depth(train, tmp_path):
    budget = 20 * train(steps=10).flops_per_step
    whole, grown = train(steps=10, budget=budget), train("grown", steps=10, budget=budget, curriculum=1.0)
    assert whole.steps == 20 < grown.steps == round(budget / grown.flops_per_step)
    found, third = columns(tmp_path, "grown"), grown.steps // 3
    assert [supervised(found, step) for step in (0, third + 1, grown.steps - 1)] == [[1], [2], [3]]


def test_the_budget_pays_for_what_memory_and_supervision_cost(train):
    """Recomputation runs every step's forward once more; a step that weighs nothing needs no backward pass."""
    stored = train(steps=1, supervision=constant).flops_per_step
    assert stored < train(steps=1, supervision=constant, activations=checkpoint).flops_per_step < 1.5 * stored
    assert train(steps=1, supervision=last_only, bptt=one_step_gradient).flops_per_step < 0.7 * stored
    assert train(supervision=constant, budget=5 * stored).steps == 5


def test_a_lead_is_drawn_anew_for_every_step_and_costs_its_forward_passes(train, model, runtime, monkeypatch):
    """Operations are those of the supervised steps, and of as many more as come before them on average."""

    def operations(lead):
        settings = {"sequences": len(BATCHES[0]), "seed": 0, "step": 0, "progress": 0.0, "statistics": False}
        return flops.count(lambda: accumulate(model, Objective(STEPS), [BATCHES[0]], runtime, lead=lead, **settings))

    lead = RandomLead(8, 0.7)
    one_step = (operations(5) - operations(0)) / 5
    assert train(lead=lead, steps=1).flops == pytest.approx(operations(0) + lead.mean * one_step, rel=0.02)  # of three batches
    taken, step = [], type(model.refiner).step
    monkeypatch.setattr(type(model.refiner), "step", lambda self, number, *rest: taken.append(number) or step(self, number, *rest))
    train(lead=lead, steps=6, validate_every=6)
    drawn = [lead(key(0, step)) for step in range(6)]
    assert len(set(drawn)) > 2 and Counter(taken)[STEPS + max(drawn) - 1] >= 1 and max(taken) == STEPS + max(drawn) - 1
