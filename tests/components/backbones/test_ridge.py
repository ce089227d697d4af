"""Ridge regression: its normal equations hold, and the penalty does what it should."""

import torch

from components.backbones.ridge import ridges


def data(n=200):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64) + 2
    return x, x @ torch.randn(4, 3, generator=g, dtype=torch.float64) + 5 + 0.1 * torch.randn(n, 3, generator=g).double()


def test_the_gradient_of_each_objective_is_zero():
    x, y = data()
    for penalty, fitted in zip((0.0, 1.0, 100.0), ridges(x, y, (0.0, 1.0, 100.0)), strict=True):
        w, b = fitted.weight.clone().requires_grad_(True), fitted.bias.clone().requires_grad_(True)
        ((x @ w + b - y).square().sum() + penalty * w.square().sum()).backward()
        assert w.grad.abs().max() < 1e-8 and b.grad.abs().max() < 1e-8 and fitted.penalty == penalty


def test_it_finds_a_line_and_its_mean_is_free():
    x, y = data()
    weak, strong = ridges(x, y, (1e-6, 1e12))
    assert (weak(x) - y).abs().max() < 0.5
    assert torch.allclose(strong(x), y.mean(0).expand_as(y), atol=1e-6)


def test_it_leaves_its_inputs_alone_and_answers_in_their_precision():
    x, y = (value.float() for value in data())
    kept = x.clone()
    assert ridges(x, y, (1.0,))[0](x).dtype is torch.float32 and torch.equal(x, kept)
    x, y = data()
    kept = x.clone()
    ridges(x, y, (1.0,))
    assert torch.equal(x, kept)
