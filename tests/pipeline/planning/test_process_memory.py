"""What a process holds of a training: on shapes what it takes with values, and of what is shared out its share."""

import copy

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.model import Model
from components.nn.masters import widen
from components.training.ema import EMA
from components.training.freezing import freeze_except
from components.training.optim import adamw, muon
from pipeline.planning.memory import size, weights
from pipeline.planning.process_memory import process_memory

META = torch.device("meta")


class Plain(Model):
    """Two layers, of which the second is trained; nothing that could be shared out."""

    n_steps = 1

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(30, 50).requires_grad_(False), torch.nn.Linear(50, 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("chosen", "of_moments"), [(adamw, 8 * (50 * 30 + 30)), (muon, 4 * 50 * 30 + 8 * 30)])
def test_training_takes_what_model_optimizer_average_and_gradient_take(dtype, chosen, of_moments):
    """A trained weight takes 4 bytes, AdamW's moments 8, Muon's 4, average and gradient 4 each; a frozen one its type's."""
    model = Plain().to(dtype)
    held = process_memory(copy.deepcopy(model).to(META), chosen)
    widen(model, model.layers[1].parameters())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer, average = chosen(trained.items()), EMA(trained.values(), 0.9)
    model.layers(torch.ones(2, 30, dtype=dtype)).sum().backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    resident, step = size([*model.parameters(), *moments]), size(p.grad for p in trained.values())
    assert (held.weights, held.moments, held.trained) == (weights(model), of_moments, step) and size(moments) == of_moments
    assert all(p.grad is None for p in held.model.parameters()) and held.gathered == held.surplus == 0
    for averaged, of_average in ((True, size(average.average)), (False, 0)):
        taken = [held.training(average=averaged, step=made, validation=7, microbatches=1) for made in (0, 100 * step)]
        assert taken == [resident + of_average + step + 7, resident + of_average + 100 * step]


def lm(dtype=torch.float32):
    with META:
        return TinyLM(vocab=102, seq=6, dim=16, layers=3, heads=2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_of_layers_that_are_shared_out_a_process_holds_its_share(dtype, processes):
    """Masters, moments and gradients of it; embeddings, head and norm whole."""
    model, read = lm(dtype), dtype.itemsize
    layers = sum(parameter.numel() for parameter in model.blocks.parameters())
    others, a_layer = sum(parameter.numel() for parameter in model.parameters()) - layers, layers // 3
    held, own = process_memory(model, adamw, processes), others + layers // processes
    assert (held.trained, held.moments) == (4 * own, 8 * own)
    assert held.weights == 4 * own + size(model.buffers())
    if processes > 1:
        assert held.gathered == (3 * read + 4) * a_layer and held.surplus == read * layers - 4 * layers // processes
        assert {p.dtype for p in held.model.blocks.parameters()} == {dtype}
    without = {"average": False, "validation": 0}
    full = process_memory(model, adamw)
    gradients = (read if processes > 1 else 4) * layers + 4 * others  # of one microbatch; of two there are the newest and a sum
    for microbatches, copies in ((1, 1), (2, 2), (4, 3)):
        taken = held.training(step=copies * gradients, microbatches=microbatches, **without)
        assert taken == 12 * own + size(model.buffers()) + copies * 4 * own + held.gathered
    if processes > 1:
        assert held.training(step=1000 * gradients, microbatches=1, **without) < full.training(
            step=1000 * 4 * (layers + others), microbatches=1, **without
        )


def test_layers_of_which_a_part_is_trained_are_not_shared_out():
    model = lm()
    freeze_except(model, ["blocks.2.out", "norm"])
    assert process_memory(model, adamw, 2).trained == process_memory(model, adamw).trained


def test_the_model_that_is_planned_for_stays_as_it_was():
    model = lm(torch.bfloat16)
    process_memory(model, adamw, 2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and all(p.grad is None for p in model.parameters())
