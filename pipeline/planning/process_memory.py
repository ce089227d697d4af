"""Bytes that one process takes of a training, and sends to the others, reckoned on shapes: of all that is trained, or of its share
of the layers that ``pipeline.training.sharding.fully_sharded`` shares out.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from components.model import Model
from components.nn.masters import widen
from pipeline.errors import ConfigError
from pipeline.planning import memory
from pipeline.planning.cost import Memory
from pipeline.training.sharding import check_shared, shared_units

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
        shared: parameters of all layers that are shared out; ``read``: their bytes as they are gathered.
    """

    model: Model
    weights: int
    trained: int
    moments: int
    gathered: int
    surplus: int
    shared: int = 0
    read: int = 0

    def training(self, *, average: bool, step: int, validation: int, microbatches: int, on_host: bool = False) -> Memory:
        """The most bytes that training takes at once.

        Args:
            average: whether one is kept of what is trained.
            step: the most that what a step of ``model`` makes takes, its gradients and their partial sums included.
            validation: the most that what a validation makes takes, beside the last gradient.
            microbatches: of a step, in this process.
            on_host: the device is the host, where the first process puts models together from all shares.
        """
        copies = 1 + int(math.log2(microbatches))  # of gradients: the newest, and sums of 1, 2, 4, ... of them
        whole = self.trained + self.whole if on_host else 0
        made = max(step - copies * self.surplus, self.trained + validation, whole)
        gradients = min(copies * self.trained, made)
        return Memory(self.weights, gradients, self.moments, average * self.trained, gathered=self.gathered, batch=made - gradients)

    @property
    def whole(self) -> int:
        """Bytes of a model's layers that are shared out, put together."""
        return MASTER * self.shared

    def saving(self, *, average: bool) -> int:
        """Bytes of a GPU's host that saving takes: a copy of what is trained, average and moments, and on the first process's the
        layers of all.
        """
        return (1 + average) * self.trained + self.moments + self.whole

    def sent(self, processes: int, microbatches: int) -> int:
        """Bytes that this process sends to the others in a step, as around a ring.

        Gradients of what every process holds go to where they are summed, and the sums to all. Layers that are shared out are
        gathered for every microbatch's forward and backward pass, and their gradient is summed.

        Args:
            processes: that share a step.
            microbatches: of a step, in this process.
        """
        sums = 2 * (self.trained - self.whole // processes)
        layers = microbatches * (2 * self.read + self.whole)
        return (sums + layers) * (processes - 1) // processes


def process_memory(
    model: Model, optimizer: Callable[..., torch.optim.Optimizer], processes: int = 1, trials: int = 1
) -> ProcessMemory:
    """Reckon what one of several processes holds of a model.

    Args:
        model: of shapes, as it is loaded, what is not trained frozen.
        optimizer: makes the optimizer from what is trained.
        processes: that share its layers out; 1 = each holds all.
        trials: trainings of the model, one after the other.

    Raises:
        ConfigError: as ``pipeline.training.sharding.check_shared``.
    """
    whole = memory.in_training(model)
    trained = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    moments = memory.moments(whole, optimizer)
    if processes == 1 or not shared_units(model):
        return ProcessMemory(whole, memory.weights(whole), MASTER * trained, moments, 0, 0)
    check_shared(optimizer((name, p) for name, p in whole.named_parameters() if p.requires_grad), trials)
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
        shared=number,
        read=read,
    )


def own_microbatches(stage: str, accumulation: int, processes: int) -> int:
    """Count the microbatches of a step in one process.

    Raises:
        ConfigError: the processes cannot share them evenly.
    """
    each, rest = divmod(accumulation, processes)
    if rest:
        raise ConfigError(
            f"{stage}: {processes} processes cannot share loop.fit.accumulation = {accumulation} microbatches evenly; set "
            "ACCUMULATION to a multiple of --processes"
        )
    return each
