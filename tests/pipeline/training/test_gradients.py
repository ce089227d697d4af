"""The gradient of a step: that of the whole batch, the same bits however microbatches are shared, dropout that needs no state."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.model import Model
from components.objective.masking import exact_count
from components.objective.objective import Objective
from components.objective.supervision import constant, last_only
from components.recursion import State
from components.refiners.core import Layout
from components.training.summation import PairwiseSum
from pipeline.corpora.prepared import Vocabulary
from pipeline.data.batches import assemble
from pipeline.training import sharding
from pipeline.training.gradients import accumulate
from pipeline.training.sharding import trainable


class Twice(Model):
    """Two recursion steps with dropout, a penalty and a statistic; one part is frozen, one is never used."""

    n_steps = 2

    def __init__(self, dropout=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding, self.inner, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.frozen, self.unused = nn.Parameter(torch.ones(8), requires_grad=False), nn.Parameter(torch.ones(8))
        self.drop = nn.Dropout(dropout)
        for parameter in (*self.embedding.parameters(), *self.inner.parameters(), *self.head.parameters()):
            nn.init.normal_(parameter, generator=generator)

    def begin(self, batch, positions=None):
        return {}, {"hidden": self.embedding(batch.tokens) * self.frozen}, Layout(batch.attention, positions)

    def step(self, number, carry, condition, layout, statistics=False):
        hidden = self.drop(torch.tanh(self.inner(carry["hidden"])))
        measured = {"size": hidden.detach().square().mean()} if statistics else {}
        return State(hidden, {"hidden": hidden}, measured, 0.1 * hidden.square().mean())

    def normed(self, state):
        return state


def make(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(8, (n, 6), generator=generator)
    response = torch.arange(6).expand(n, 6) >= 2
    masked, weights = exact_count(response, torch.rand(n, 7, generator=generator, dtype=torch.float64))
    return assemble(tokens, masked, weights, None, Vocabulary(9, 8, 8, tokens.shape[1], "text"))


def parts(whole, *sizes):
    bounds = pairwise(torch.tensor((0, *sizes)).cumsum(0).tolist())
    return [replace(whole, **{k: v[a:b] for k, v in vars(whole).items() if v is not None}) for a, b in bounds]


@pytest.fixture
def gradient(runtime):
    """``gradient(model, micro, ...)``: what ``accumulate`` returns, and the gradient by name of parameter."""

    def gradient(model, micro, supervision=constant, **settings):
        settings = {"sequences": 8, "seed": 0, "step": 0, "progress": 1.0, "statistics": True, **settings}
        values = accumulate(model, Objective(2, supervision=supervision), micro, runtime, **settings)
        return values, {name: p.grad for name, p in model.named_parameters()}

    return gradient


@pytest.fixture
def process_of(monkeypatch, gradient):
    """``process_of(rank, world)(...)``: as ``gradient``, in one process of several before they are added up."""

    def become(rank, world):
        def partial(*args, **settings):
            with monkeypatch.context() as patch:
                patch.setenv("RANK", str(rank))
                patch.setenv("WORLD_SIZE", str(world))
                patch.setattr(sharding, "summed", list)
                return gradient(*args, **settings)

        return partial

    return become


def plain(model, batch, weights=(0.5, 1.0)):
    """Loss of every step and gradients, written out for a whole batch."""
    model.zero_grad()
    losses, total = [], 0.0
    for weight, state in zip(weights, list(model.steps(batch)), strict=True):
        logits = model.readout(state.hidden)
        nll = F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")
        losses.append((nll * batch.weights).sum() / len(batch))
        total = total + weight * (losses[-1] + state.penalty)
    total.backward()
    return total.item(), [loss.item() for loss in losses], {name: p.grad for name, p in model.named_parameters()}


# The whole batch


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (3, 5), (1, 1, 6), (2, 2, 2, 2), (1,) * 8])
def test_microbatches_give_the_gradient_of_the_whole_batch(gradient, sizes):
    model, whole = Twice(), make()
    loss, losses, expected = plain(model, whole)
    expected = {name: None if grad is None else grad.clone() for name, grad in expected.items()}
    values, found = gradient(model, parts(whole, *sizes))
    for name in ("embedding.weight", "inner.weight", "inner.bias", "head.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
        assert expected[name].norm() > 1e-3
    assert values["loss"].item() == pytest.approx(loss, rel=1e-5)
    assert [values[f"loss/step_{k}"].item() for k in (0, 1)] == pytest.approx(losses, rel=1e-5)
    sizes_of = torch.stack([state.hidden.square().mean() for state in model.steps(whole)]).mean()
    assert values["size"].item() == pytest.approx(sizes_of.item(), rel=1e-5)
    assert list(values) == ["loss", "loss/step_0", "loss/step_1", "size"]


def test_supervision_weighs_the_steps(gradient):
    model, whole = Twice(), make()
    expected = plain(model, whole, weights=(0.0, 1.0))[2]["inner.weight"].clone()
    _, found = gradient(model, parts(whole, 4, 4), supervision=last_only)
    torch.testing.assert_close(found["inner.weight"], expected, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_was_there_does_not_linger(gradient):
    model, micro = Twice(), parts(make(), 4, 4)
    first = gradient(model, micro)[1]["head.weight"].clone()
    assert torch.equal(gradient(model, micro)[1]["head.weight"], first)
    alone = gradient(model, [make()])[1]["head.weight"].clone()
    assert torch.equal(gradient(model, [make()])[1]["head.weight"], alone)


@pytest.mark.parametrize("sizes", [(8,), (4, 4)])
def test_frozen_parameters_get_no_gradient_and_unused_ones_none_that_moves_them(gradient, sizes):
    model = Twice()
    _, found = gradient(model, parts(make(), *sizes))
    assert found["frozen"] is None and "frozen" not in trainable(model, Objective(2))
    assert found["unused"] is None or not found["unused"].any()
    assert len(trainable(model, Objective(2))) == 5


def test_statistics_are_measured_when_asked(gradient):
    assert list(gradient(Twice(), [make()], statistics=False)[0]) == ["loss", "loss/step_0", "loss/step_1"]


# Shares


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_processes_that_share_microbatches_get_the_bits_of_one(gradient, process_of, world, dropout):
    model, micro = Twice(dropout).train(), parts(make(), 2, 2, 2, 2)
    values, expected = gradient(model, micro, step=3)
    total, share = PairwiseSum(), 4 // world
    for rank in range(world):
        mine, found = process_of(rank, world)(model, micro[rank * share : (rank + 1) * share], step=3)
        total.add([*(grad for grad in found.values() if grad is not None), *mine.values()])
    together = total.result()
    alone = [*(grad for grad in expected.values() if grad is not None), *values.values()]
    assert len(together) == len(alone) and all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


# What a model draws


def test_dropout_is_a_function_of_seed_step_and_microbatch(gradient, process_of):
    model, (one, other) = Twice(0.5).train(), parts(make(), 4, 4)

    def drawn(draw, micro, **settings):
        torch.manual_seed(torch.seed())  # whatever was drawn before
        return draw(model, micro, **settings)[0]["loss"].item()

    first, second = process_of(0, 2), process_of(1, 2)
    assert drawn(first, [one]) == drawn(first, [one]) and drawn(gradient, [one, other]) == drawn(gradient, [one, other])
    draws = [drawn(first, [one], seed=seed, step=step) for seed in (0, 1) for step in (0, 1)]
    assert len({*draws, drawn(second, [one])}) == 5
    assert drawn(first, [one]) + drawn(second, [other]) == pytest.approx(drawn(gradient, [one, other]), rel=1e-6)
