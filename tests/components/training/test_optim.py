import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from components.training.optim import adamw, set_lr, warmup_cosine


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


def test_nothing_trainable_is_an_error():
    with pytest.raises(ValueError, match="nothing is trainable"):
        adamw(Model().requires_grad_(False).named_parameters())


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
