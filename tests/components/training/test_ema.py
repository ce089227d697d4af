import pytest
import torch
from torch import nn

from components.training.ema import EMA


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def drift(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_equals_a_loop_over_numbers(decay):
    net = model()
    ema = EMA(net.parameters(), decay)
    expected = [p.flatten().tolist() for p in net.parameters()]
    for n in range(20):
        drift(net)
        ema.update()
        ramped = min(decay, (1 + n) / (10 + n))
        for average, p in zip(expected, net.parameters(), strict=True):
            average[:] = [ramped * a + (1 - ramped) * v for a, v in zip(average, p.flatten().tolist(), strict=True)]
    for average, plain in zip(ema.average, expected, strict=True):
        torch.testing.assert_close(average.flatten(), torch.tensor(plain), rtol=1e-4, atol=1e-5)


def test_decay_zero_is_the_parameters_themselves_and_holds_no_copy():
    net = model()
    ema = EMA(net.parameters(), 0.0)
    for _ in range(3):
        drift(net)
        ema.update()
        own = [p.detach().clone() for p in net.parameters()]
        with ema.applied():
            assert all(torch.equal(p, o) for p, o in zip(net.parameters(), own, strict=True))
    assert ema.average == [] and ema.updates == 3


def test_applied_holds_the_average_inside_and_restores_bit_for_bit():
    net = model()
    ema = EMA(net.parameters(), 0.9)
    drift(net)
    ema.update()
    own, average = [p.detach().clone() for p in net.parameters()], [a.clone() for a in ema.average]
    memory = [tensor.data_ptr() for tensor in (*net.parameters(), *ema.average)]  # which others may hold too
    with ema.applied():
        assert all(torch.equal(p, a) for p, a in zip(net.parameters(), average, strict=True))
        assert not any(torch.equal(p, o) for p, o in zip(net.parameters(), own, strict=True))
    assert all(torch.equal(p, o) for p, o in zip(net.parameters(), own, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.average, average, strict=True))
    assert memory == [tensor.data_ptr() for tensor in (*net.parameters(), *ema.average)]


def test_applied_restores_after_an_exception():
    net = model()
    ema = EMA(net.parameters(), 0.9)
    drift(net)
    own, average = [p.detach().clone() for p in net.parameters()], [a.clone() for a in ema.average]
    with pytest.raises(RuntimeError, match="stop"), ema.applied():
        raise RuntimeError("stop")
    assert all(torch.equal(p, o) for p, o in zip(net.parameters(), own, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.average, average, strict=True))


def test_frozen_parameters_are_neither_averaged_nor_replaced():
    net = model()
    net[0].requires_grad_(False)
    ema = EMA(net.parameters(), 0.9)
    drift(net)
    frozen = net[0].weight.clone()
    with ema.applied():
        assert torch.equal(net[0].weight, frozen)
    assert [a.shape for a in ema.average] == [p.shape for p in net[1].parameters()]


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_decay_outside_its_range_is_an_error_naming_it(decay):
    with pytest.raises(ValueError, match=str(decay)):
        EMA(model().parameters(), decay)
