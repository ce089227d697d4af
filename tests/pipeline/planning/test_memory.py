"""Bytes on shapes are those that the same computation takes with values."""

import copy

import pytest
import torch

from components.objective.activations import checkpoint, keep
from components.objective.objective import Objective
from components.training.ema import EMA
from components.training.optim import adamw
from pipeline.planning import memory
from tests.support import cores

META = torch.device("meta")


def _grouped(dtype, device="meta"):
    """A product of experts, and its gradients."""
    x = torch.zeros(12, 16, dtype=dtype, device=device, requires_grad=True)
    weight = torch.zeros(4, 24, 16, dtype=dtype, device=device, requires_grad=True)
    y = torch._grouped_mm(x, weight.transpose(1, 2), offs=torch.zeros(4, dtype=torch.int32, device=device))
    (y * y).sum().backward()
    return [(tensor.shape, tensor.dtype) for tensor in (y, x.grad, weight.grad)]


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_experts_have_shapes_in_any_precision(dtype):
    with memory.AnyPrecision():
        found = _grouped(dtype)
    assert found == [((12, 24), dtype), ((12, 16), dtype), ((4, 24, 16), dtype)] == _grouped(dtype, "cpu")


def test_weights_are_counted_once_and_by_their_type():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 3).bfloat16(), torch.nn.BatchNorm1d(3, affine=False))
    model.append(model[0])
    assert memory.weights(model) == 4 * 20 + 2 * 18 + 2 * 4 * 3 + 8


def test_training_keeps_what_its_optimizer_and_its_average_keep():
    """AdamW's moments, the average of the weights, and the weights themselves while the average is in their place."""
    model = torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.Linear(50, 30))
    model[0].requires_grad_(False)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer, average = adamw(trained.items()), EMA(trained.values(), 0.9)
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    own = [p.detach().clone() for p in average.parameters]
    with average.applied():
        apart = [p for p, mine in zip(average.parameters, own, strict=True) if not torch.equal(p, mine)]
    assert len(moments) == 4 and len(apart) == 2  # changed, hence its own values have to be somewhere else
    assert memory.trained(model) == sum(tensor.nbytes for tensor in (*moments, *average.average, *own))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_nothing_holds_any_more_is_not_counted(device):
    def work():
        a = torch.ones(100, 10, device=device)
        b = a * 2
        c = a @ b.T  # 4,000 + 4,000 + 40,000 bytes
        del a, b
        return c.view(-1)[:7] + 1

    assert memory.peak(work) == 48_000


@pytest.mark.parametrize("activations", [keep, checkpoint])
def test_a_training_step_takes_on_shapes_what_it_takes(activations):
    model, batch = cores.model_of("slots", dtype=torch.float32), cores.batch()
    shapes = copy.deepcopy(model).to(META)

    def step(model, batch):
        objective = Objective(model.n_steps, activations=activations)
        return lambda: objective.gradient(model, batch, sequences=len(batch))

    really, reckoned = memory.peak(step(model, batch)), memory.peak(step(shapes, batch.to(META)))
    assert reckoned == pytest.approx(really, rel=0.05)
    assert memory.peak(step(shapes, batch.to(META))) <= reckoned


def test_recomputation_takes_less():
    model, batch = cores.model_of("slots", dtype=torch.float32).to(META), cores.batch().to(META)
    objectives = (Objective(model.n_steps, activations=activations) for activations in (keep, checkpoint))
    kept, made_again = (memory.peak(lambda o=o: o.gradient(model, batch, sequences=len(batch))) for o in objectives)
    assert made_again < 0.8 * kept
