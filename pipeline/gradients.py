"""The gradient of one optimizer step: microbatches forward and backward, summed in a fixed tree over all processes.

The loss is a sum divided by the sequences of the whole step, whatever the microbatches and processes are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from components import noise
from components.batch import Batch
from components.losses import masked_cross_entropy
from components.model import Model
from components.recursion import State
from components.summation import PairwiseSum
from components.supervision import normalised
from pipeline.distributed import rank, summed, world
from pipeline.runtime import Runtime


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [p for p in model.parameters() if p.requires_grad]


def accumulate(
    model: Model,
    micro: Sequence[Batch],
    supervision: Callable[[int], list[float]],
    runtime: Runtime,
    *,
    sequences: int,
    seed: int,
    step: int,
    statistics: bool,
) -> dict[str, Tensor]:
    """Leave the step's gradient in the parameters; returns loss, loss of each step and statistics, still on the device.

    Args:
        model: frozen as wanted.
        micro: this process's share of the step's microbatches.
        supervision: number of recursion steps -> weight of each.
        runtime: device and precision.
        sequences: of the step, over all processes.
        seed: of what the model draws (dropout), with the step and the microbatch's number.
        step: number of the step.
        statistics: also measure slots, gates, ...
    """
    parameters = trainable(model)
    for parameter in parameters:
        parameter.grad = None
    total, names = PairwiseSum(), list[str]()
    for number, batch in enumerate(micro, rank() * len(micro)):
        torch.manual_seed(noise.key(seed, step, number))
        values = _backward(model, batch, supervision, runtime, sequences, statistics)
        if len(micro) == world() == 1:
            for parameter in parameters:
                parameter.grad = _taken(parameter)
            return values
        names = list(values)
        total.add([*(_taken(parameter) for parameter in parameters), torch.stack(list(values.values()))])
    *gradients, numbers = summed(total.result())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return dict(zip(names, numbers.unbind(), strict=True))


def _taken(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, which is removed from it; zeros if nothing reached it, whoever computes."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _backward(
    model: Model,
    batch: Batch,
    supervision: Callable[[int], list[float]],
    runtime: Runtime,
    sequences: int,
    statistics: bool,
) -> dict[str, Tensor]:
    """Forward and backward of one microbatch; returns its part of each number."""
    with runtime.autocast():
        states = list(model.steps(batch, statistics=statistics))
        losses = [masked_cross_entropy(model.readout, state.hidden, batch) / sequences for state in states]
    weights = normalised(supervision(len(losses)))
    share = len(batch) / sequences
    penalties = [state.penalty * share if state.penalty is not None else 0.0 for state in states]
    loss = torch.stack([w * (x + penalty) for w, x, penalty in zip(weights, losses, penalties, strict=True)]).sum()
    loss.backward()
    parts = {"loss": loss, **{f"loss/step_{k}": x for k, x in enumerate(losses)}, **_mean_statistics(states, share)}
    return {name: value.detach() for name, value in parts.items()}


def _mean_statistics(states: list[State], share: float) -> dict[str, Tensor]:
    """Mean over recursion steps of each statistic, times the microbatch's share of the optimizer step."""
    return {name: share * torch.stack([state.statistics[name] for state in states]).mean() for name in states[0].statistics}
