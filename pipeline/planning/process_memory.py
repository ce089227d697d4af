"""Bytes that one process takes of a training, reckoned on shapes: of all that is trained, or of its share of the layers that
``pipeline.training.sharding.fully_sharded`` shares out.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from components.model import Model
from components.nn.masters import widen
from pipeline.planning import memory
from pipeline.training.sharding import shared_units

MASTER = 4  # bytes of a trained weight: float32
AHEAD = 2  # layers that are gathered at once: the one that runs, and the next


@dataclass(frozen=True)
class ProcessMemory:
    """What a process holds of a model that is trained, whatever a step makes.

    Attributes:
        model: on shapes. What is shared out reads and leaves gradients in the precision in which layers are gathered; all else of
            what is trained has float32 masters.
        weights: bytes of them, of what is shared out the share.
        trained: bytes of what the process's optimizer moves.
        moments: bytes that this optimizer keeps.
        gathered: bytes of layers that are put together while they run, and of a layer's gradient before it is shared out.
        surplus: bytes by which a gradient of ``model`` is larger than the process's.
    """

    model: Model
    weights: int
    trained: int
    moments: int
    gathered: int
    surplus: int

    def training(self, *, average: bool, step: int, validation: int, microbatches: int) -> int:
        """The most bytes that training takes at once.

        Args:
            average: whether one is kept of what is trained.
            step: the most that what a step of ``model`` makes takes, its gradients and their partial sums included.
            validation: the most that what a validation makes takes, beside the last gradient.
            microbatches: of a step, in this process.
        """
        gradients = 1 + int(math.log2(microbatches))  # the newest, and sums of 1, 2, 4, ... of them
        working = max(step - gradients * self.surplus, self.trained + validation) + self.gathered
        return self.weights + self.moments + average * self.trained + working


def process_memory(model: Model, optimizer: Callable[..., torch.optim.Optimizer], processes: int = 1) -> ProcessMemory:
    """Reckon what one of several processes holds of a model.

    Args:
        model: of shapes, as it is loaded, what is not trained frozen.
        optimizer: makes the optimizer from what is trained.
        processes: that share its layers out; 1 = each holds all.
    """
    whole = memory.in_training(model)
    trained = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    moments = memory.moments(whole, optimizer)
    if processes == 1 or not shared_units(model):
        return ProcessMemory(whole, memory.weights(whole), MASTER * trained, moments, 0, 0)
    model = copy.deepcopy(model)
    units = [{id(parameter): parameter for parameter in module.parameters()} for module, _ in shared_units(model)]
    shared = {name: parameter for unit in units for name, parameter in unit.items()}
    number, read = sum(parameter.numel() for parameter in shared.values()), memory.size(shared.values())
    widen(model, [p for p in model.parameters() if p.requires_grad and id(p) not in shared])
    share, largest = MASTER * number // processes, max(units, key=lambda unit: memory.size(unit.values())).values()
    return ProcessMemory(
        model,
        weights=memory.weights(model) - read + share,
        trained=MASTER * (trained - number) + share,
        moments=round(moments * (trained - number + number / processes) / trained),
        gathered=(AHEAD + 1) * memory.size(largest) + MASTER * sum(parameter.numel() for parameter in largest),
        surplus=read - share,
    )
