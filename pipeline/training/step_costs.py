"""Measure what the gradient of one batch takes on this machine by its recursion steps: memory, operations and seconds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from components.batch import Batch
from components.model import Model
from components.objective.activations import Activations, checkpoint, keep
from components.objective.losses import Loss
from components.objective.objective import Objective
from components.objective.supervision import last_only, linear_decay
from components.recursion import BpttSegments, full_gradient, one_step_gradient
from pipeline.machine import allocation
from pipeline.machine.runtime import Runtime
from pipeline.training.flops import count

KEEP, PLAIN = "keep", "no deep supervision"
WAYS: dict[str, tuple[Activations, BpttSegments]] = {  # to hold what the backward pass needs
    KEEP: (keep, full_gradient),
    "checkpoint": (checkpoint, full_gradient),
    "one step's gradient": (keep, one_step_gradient),
}
ROUNDS = 3  # of what is timed; the quickest counts


@dataclass(frozen=True)
class StepCost:
    """Costs of one gradient, all of them measured.

    Attributes:
        way: that activations are held in.
        steps: supervised recursion steps.
        bytes: most that were allocated at once beyond what was there before.
        flops: operations of matrix products, with what is computed twice.
        seconds: of the quickest of ``ROUNDS``.
    """

    way: str
    steps: int
    bytes: int
    flops: int
    seconds: float


def measure(model: Model, batch: Batch, loss: Loss, steps: Sequence[int], runtime: Runtime) -> list[StepCost]:
    """Measure the gradient of a batch with each number of steps, in each way to hold activations and without deep supervision.

    Args:
        model: frozen as in training; its parameters' gradients are used up.
        batch: a microbatch.
        loss: of a step's states.
        steps: numbers of recursion steps.
        runtime: where it computes.
    """
    costs = []
    for number in steps:
        objectives = {
            way: Objective(number, loss, linear_decay, bptt=bptt, activations=policy) for way, (policy, bptt) in WAYS.items()
        }
        objectives[PLAIN] = Objective(number, loss, last_only)
        for way, objective in objectives.items():
            work = partial(objective.gradient, model, batch, sequences=len(batch), autocast=runtime.autocast)
            flops = count(work)  # and makes the parameters' gradients, which the peak then leaves out
            costs.append(StepCost(way, number, allocation.peak(work), flops, min(_seconds(work, runtime) for _ in range(ROUNDS))))
    model.zero_grad(set_to_none=True)
    return costs


def _seconds(work: Callable[[], object], runtime: Runtime) -> float:
    began = time.perf_counter()
    work()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - began
