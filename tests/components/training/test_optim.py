import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from components.training.optim import adamw, muon, set_lr, warmup_cosine


class Model(nn.Module):
    """Parameters of 1, 2 and 3 dimensions inside and outside a backbone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.ModuleDict({"linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3)})
        self.backbone_like = nn.Linear(3, 2)
        self.cube = nn.Parameter(torch.randn(2, 2, 2))


def settings_of(model, optimizer):
    """(lr, weight decay) of each parameter, by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    rows = [(names[id(p)], group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(rows) == len({name for name, *_ in rows})
    return {name: (lr, decay) for name, lr, decay in rows}


def test_matrices_decay_vectors_do_not_and_the_backbone_has_its_own_rate():
    model = Model()
    assert settings_of(model, adamw(model.named_parameters(), lr=0.1, backbone_lr=0.01, weight_decay=0.5)) == {
        "backbone.linear.weight": (0.01, 0.5),
        "backbone.linear.bias": (0.01, 0.0),
        "backbone.norm.weight": (0.01, 0.0),
        "backbone.norm.bias": (0.01, 0.0),
        "backbone_like.weight": (0.1, 0.5),
        "backbone_like.bias": (0.1, 0.0),
        "cube": (0.1, 0.5),
    }


@pytest.mark.parametrize(("backbone_lr", "expected"), [(None, 0.1), (0.0, 0.0)])
def test_backbone_rate_is_lr_unless_given_even_if_given_as_zero(backbone_lr, expected):
    model = Model()
    assert (
        settings_of(model, adamw(model.named_parameters(), lr=0.1, backbone_lr=backbone_lr))["backbone.linear.weight"][0]
        == expected
    )


def test_frozen_parameters_are_left_out():
    model = Model()
    model.backbone.requires_grad_(False)
    assert set(settings_of(model, adamw(model.named_parameters()))) == {"backbone_like.weight", "backbone_like.bias", "cube"}


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_nothing_trainable_is_an_error(optimizer):
    with pytest.raises(ValueError, match="nothing is trainable"):
        optimizer(Model().requires_grad_(False).named_parameters())


def test_two_steps_equal_adamw_written_out():
    model, (b1, b2), lr = Model(), (0.8, 0.9), 0.1
    optimizer = adamw(model.named_parameters(), lr=lr, weight_decay=0.5, betas=(b1, b2))
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for t in (1, 2):
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape)
            decay = 0.5 if (name.endswith("weight") and "norm" not in name) or name == "cube" else 0.0
            first[name] = b1 * first[name] + (1 - b1) * p.grad
            second[name] = b2 * second[name] + (1 - b2) * p.grad**2
            update = (first[name] / (1 - b1**t)) / ((second[name] / (1 - b2**t)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - lr * decay) - lr * update
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])


class Network(nn.Module):
    """What Muon trains (the matrices of ``inner``, ``project_embedding`` and ``backbone.up``) among what it does not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.lm_head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.inner, self.project_embedding, self.gate = nn.Linear(4, 6), nn.Linear(3, 4, bias=False), nn.Linear(4, 1)
        self.backbone = nn.ModuleDict({"up": nn.Linear(4, 4, bias=False), "head": nn.Linear(4, 5, bias=False)})
        self.stack, self.positions = nn.Parameter(torch.randn(2, 3, 3)), nn.Parameter(torch.randn(3, 4))


MATRICES = {"inner.weight", "project_embedding.weight", "backbone.up.weight"}


def taken_by_muon(model, optimizer):
    """Names of what has one moment."""
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    optimizer.step()
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p, state in optimizer.state.items() if set(state) == {"momentum_buffer"}}


def test_muon_takes_the_matrices_inside_adamw_all_else_and_rates_and_decays_are_as_for_adamw():
    model, given = Network(), {"lr": 0.1, "backbone_lr": 0.01, "weight_decay": 0.5}
    optimizer = muon(model.named_parameters(), **given)
    assert settings_of(model, optimizer) == settings_of(model, adamw(model.named_parameters(), **given))
    assert taken_by_muon(model, optimizer) == MATRICES and len(optimizer.state) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ((), MATRICES | {"embedding.weight", "lm_head.weight", "backbone.head.weight", "positions"}),
        (("up", "inner"), {"embedding.weight", "lm_head.weight", "backbone.head.weight", "positions", "project_embedding.weight"}),
        (("positions", "head", "backbone"), MATRICES | {"embedding.weight", "lm_head.weight"}),
    ],
)
def test_which_matrices_are_not_muons_can_be_set(others, expected):
    model = Network()
    assert taken_by_muon(model, muon(model.named_parameters(), others=others)) == expected


@pytest.mark.parametrize("trained", ["inner.weight", "inner.bias"])
def test_muon_works_where_there_are_matrices_alone_or_none(trained):
    model = Network().requires_grad_(False)
    weight = model.get_parameter(trained).requires_grad_()
    before = weight.detach().clone()
    assert taken_by_muon(model, muon(model.named_parameters())) == {trained} & MATRICES and not torch.equal(weight, before)


@pytest.mark.parametrize("momentum", [0.95, 0.5, 0.0])
def test_muons_step_is_its_momentum_with_singular_values_near_one(momentum):
    """Two steps with Nesterov's momentum; each of a rms of about a fifth of the rate, whatever the gradient's size."""
    model, lr = Network(), 0.1
    optimizer = muon(model.named_parameters(), lr=lr, weight_decay=0.5, momentum=momentum)
    moment = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for _ in range(2):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = 1e3 * torch.randn(p.shape)
        optimizer.step()
        for name in MATRICES:
            p = model.get_parameter(name)
            moment[name] = momentum * moment[name] + (1 - momentum) * p.grad
            u, _, v = torch.linalg.svd(momentum * moment[name] + (1 - momentum) * p.grad, full_matrices=False)
            step = (before[name] * (1 - lr * 0.5) - p.detach()) / (0.2 * max(p.shape) ** 0.5 * lr)
            values = u.T @ step @ v.T
            assert values.diagonal().min() > 0.5 and values.diagonal().max() < 1.5
            assert (values - values.diagonal().diag()).abs().max() < 0.1


def test_muon_leaves_what_it_does_not_take_to_adamw_bit_for_bit():
    one, other = Network(), Network()
    pair = [f(model.named_parameters(), lr=0.1, betas=(0.8, 0.9)) for f, model in ((adamw, one), (muon, other))]
    for _ in range(3):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in pair:
            set_lr(optimizer, 0.5)
            optimizer.step()
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) == (name not in MATRICES), name


def test_a_rate_set_after_a_state_was_loaded_is_the_one_that_is_used():
    model = Network()
    optimizer = muon(model.named_parameters(), lr=0.1)
    taken_by_muon(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    set_lr(optimizer, 0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    taken_by_muon(model, optimizer)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.05 + 0.95 / 2), (70, 0.05 + 0.95 * 0.25), (100, 0.05), (150, 0.05)],
)
def test_schedule_at_known_steps(step, expected):
    assert warmup_cosine(step, 100, lr_warmup_steps=10) == pytest.approx(expected)


def test_schedule_rises_in_equal_parts_then_falls_to_the_floor():
    values = [warmup_cosine(step, 200, lr_warmup_steps=20, floor=0.1) for step in range(201)]
    rises = [b - a for a, b in pairwise(values[:20])]
    assert rises == pytest.approx([1 / 20] * 19)
    assert values[20] == 1.0
    assert all(a > b for a, b in pairwise(values[20:]))
    assert values[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 10), (5, 10)])
def test_schedule_is_defined_for_any_warmup(steps, warmup):
    values = [warmup_cosine(step, steps, lr_warmup_steps=warmup) for step in range(steps + 1)]
    assert all(math.isfinite(v) and 0 < v <= 1 for v in values)


def test_set_lr_multiplies_each_groups_peak_not_its_present_rate():
    model = Model()
    optimizer = adamw(model.named_parameters(), lr=0.1, backbone_lr=0.01)
    for multiplier in (0.5, 0.25):
        set_lr(optimizer, multiplier)
    rates = settings_of(model, optimizer)
    assert rates["cube"][0] == pytest.approx(0.025)
    assert rates["backbone.linear.weight"][0] == pytest.approx(0.0025)
