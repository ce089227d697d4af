"""The gradient of one optimizer step: microbatches forward and backward, summed in a fixed tree over all processes.

The loss is a sum divided by the sequences of the whole step, whatever the microbatches and processes are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components import noise
from components.batch import Batch
from components.model import Model
from components.objective.deep_supervision import Supervised, backward
from components.objective.losses import Loss, masked_cross_entropy
from components.objective.memory import Memory, store
from components.objective.supervision import LearnedWeights, Weights
from components.recursion import Stretches, full_gradient
from components.training.summation import PairwiseSum
from pipeline.machine.distributed import rank, summed, world
from pipeline.machine.runtime import Runtime


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [p for p in model.parameters() if p.requires_grad]


def accumulate(
    model: Model,
    micro: Sequence[Batch],
    weights: Weights,
    runtime: Runtime,
    *,
    loss: Loss = masked_cross_entropy,
    stretches: Stretches = full_gradient,
    memory: Memory = store,
    sequences: int,
    seed: int,
    step: int,
    statistics: bool,
) -> dict[str, Tensor]:
    """Leave the step's gradient in the parameters; returns loss, loss of each step and statistics, still on the device.

    Args:
        model: frozen as wanted.
        micro: this process's share of the step's microbatches.
        weights: of each recursion step's loss.
        runtime: device and precision.
        loss: of a step's states (``components.objective.losses``).
        stretches: how far back a loss reaches (``components.recursion``).
        memory: what is kept of a step (``components.objective.memory``).
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
        values = _values(
            backward(
                model, batch, weights.weights() if isinstance(weights, LearnedWeights) else weights,
                sequences=sequences, loss=loss, stretches=stretches, memory=memory, statistics=statistics,
                autocast=runtime.autocast,
            ),
            share=len(batch) / sequences,
        )  # fmt: skip
        if isinstance(weights, LearnedWeights):
            weights.backward([values[f"loss/step_{k}"] for k in range(model.n_steps)], len(batch) / sequences)
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


def _values(found: Supervised, share: float) -> dict[str, Tensor]:
    """A microbatch's part of each number; of each statistic the mean over the recursion steps that have it."""
    parts = {"loss": found.total, **{f"loss/step_{k}": loss for k, loss in enumerate(found.losses)}}
    for name in dict.fromkeys(name for step in found.statistics for name in step):
        parts[name] = share * torch.stack([step[name] for step in found.statistics if name in step]).mean()
    return parts
