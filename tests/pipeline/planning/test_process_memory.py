"""What a process holds of a training: on shapes what it takes with values, and of what is shared out its share."""

import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.backbones.tiny_lm import TinyLM
from components.model import Model
from components.nn.masters import widen
from components.objective.objective import Objective
from components.training.ema import EMA
from components.training.freezing import freeze_except
from components.training.optim import adamw, muon
from pipeline.machine.distributed import rank, world
from pipeline.machine.runtime import Runtime
from pipeline.planning.memory import size, weights
from pipeline.planning.process_memory import process_memory
from pipeline.training.gradients import accumulate
from pipeline.training.sharding import fully_sharded, replicated
from tests.pipeline.training.test_sharding import MODELS, microbatch
from tests.support.jobs import forked

SLOW = [
    ("refined", False, 2, 2),
    ("backbone", True, 4, 1),
    ("backbone", False, 4, 1),
    ("half", True, 2, 1),
    ("library", True, 2, 1),
]
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
        taken = [held.training(average=averaged, step=made, validation=7, microbatches=1).total for made in (0, 100 * step)]
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
        assert taken.total == 12 * own + size(model.buffers()) + copies * 4 * own + held.gathered
    if processes > 1:
        assert (
            held.training(step=1000 * gradients, microbatches=1, **without).total
            < full.training(step=1000 * 4 * (layers + others), microbatches=1, **without).total
        )


def test_layers_of_which_a_part_is_trained_are_not_shared_out():
    model = lm()
    freeze_except(model, ["blocks.2.out", "norm"])
    assert process_memory(model, adamw, 2).trained == process_memory(model, adamw).trained


def test_the_model_that_is_planned_for_stays_as_it_was():
    model = lm(torch.bfloat16)
    process_memory(model, adamw, 2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and all(p.grad is None for p in model.parameters())


# What it sends


class Sent(TorchDispatchMode):
    """Counts the bytes that this process sends, of every collective that runs, as around a ring."""

    others = world() - 1
    per_byte: ClassVar = {  # of what is given to it
        "alltoall_base_": others / world(), "allgather_": others, "_allgather_base_": others,
        "_reduce_scatter_base_": others / world(), "allreduce_": 0, "barrier": 0,
    }  # fmt: skip

    def __init__(self):
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            given = next(part for part in args[1:] if isinstance(part, Tensor) or isinstance(part[0], Tensor))
            self.bytes += self.per_byte[name] * size([given] if isinstance(given, Tensor) else given)
        return func(*args, **(kwargs or {}))


def counted(name, shared, microbatches):
    """Bytes that the gradient of one step sends, of a model that is trained in several processes."""
    model = MODELS[name]()
    objective, shares = Objective(model.n_steps), None
    shares = (fully_sharded if shared else replicated)(model, objective)
    mine = [microbatch(rank() * microbatches + number) for number in range(microbatches)]
    with Sent() as sent:
        accumulate(model, objective, mine, Runtime(threads=1), sequences=3 * microbatches * world(), seed=0, step=0, progress=1.0,
                   statistics=False, shares=shares)  # fmt: skip
    Path(f"sent-{rank()}").write_text(f"{sent.bytes}")


SCRIPT = """
from pipeline.machine.distributed import joined
from tests.pipeline.planning.test_process_memory import counted

with joined():
    counted({name!r}, {shared}, {microbatches})
"""


@pytest.mark.parametrize(
    ("name", "shared", "processes", "microbatches"),
    [("refined", True, 2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_what_a_step_sends(tmp_path, name, shared, processes, microbatches):
    done = forked(SCRIPT.format(name=name, shared=shared, microbatches=microbatches), processes, tmp_path)
    assert not any(process.returncode for process in done), done[0].stderr
    model = MODELS[name]().to(META)
    expected = process_memory(model, adamw, processes if shared else 1).sent(processes, microbatches)
    for number in range(processes):
        assert float((tmp_path / f"sent-{number}").read_text()) == pytest.approx(expected, rel=0.02), number


def test_one_process_sends_nothing():
    assert process_memory(lm(), adamw).sent(1, 4) == 0
