"""The gradient of one optimizer step: microbatches forward and backward, summed in a fixed tree over all processes.

The loss is a sum divided by the sequences of the whole step, whatever the microbatches and processes are. Of n microbatches a
process holds log2(n) sums of gradients beside the newest: 1 takes 4 bytes a trained weight, 16 take 20. To add up over processes
takes a few buckets more (``pipeline.machine.distributed``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from components import noise
from components.batch import Batch
from components.model import Model
from components.objective.deep_supervision import Supervised
from components.objective.objective import Objective
from components.training.summation import PairwiseSum
from pipeline.machine.distributed import rank, world
from pipeline.machine.runtime import Runtime
from pipeline.training.sharding import Shares, replicated


def accumulate(
    model: Model,
    objective: Objective,
    micro: Sequence[Batch],
    runtime: Runtime,
    *,
    sequences: int,
    seed: int,
    step: int,
    progress: float,
    lead: int = 0,
    statistics: bool,
    shares: Shares | None = None,
) -> dict[str, Tensor]:
    """Leave the step's gradient in the parameters, or in this process's shares of them.

    Returns:
        Loss, loss of each step and statistics, still on the device.

    Args:
        model: frozen as wanted.
        objective: leaves a microbatch's gradient.
        micro: this process's share of the step's microbatches.
        runtime: device and precision.
        sequences: of the step, over all processes.
        seed: of the step's noise, and of what the model draws (dropout), with the microbatch's number.
        step: number of the step.
        progress: share of the run that is done.
        lead: steps of the recursion before the supervised ones.
        statistics: also measure slots, gates, ...
        shares: what of the parameters this process holds; None = all.
    """
    shares = shares or replicated(model, objective)
    shares.clear()
    parameters = shares.parameters.values()
    total, names = PairwiseSum(), list[str]()
    for number, batch in enumerate(micro, rank() * len(micro)):
        torch.manual_seed(noise.key(seed, step, number))
        supervised = objective.gradient(
            model, batch, sequences=sequences, progress=progress, lead=lead, key=noise.key(seed, step), statistics=statistics,
            autocast=runtime.autocast,
        )  # fmt: skip
        values = _values(supervised, share=len(batch) / sequences)
        if len(micro) == world() == 1:
            for parameter, gradient in zip(parameters, shares.taken(), strict=True):
                parameter.grad = gradient
            return values
        names = list(values)
        total.add([*shares.taken(), torch.stack(list(values.values()))])
    *gradients, numbers = shares.summed(total.result())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return dict(zip(names, numbers.unbind(), strict=True))


def _values(supervised: Supervised, share: float) -> dict[str, Tensor]:
    """A microbatch's part of each number; of each statistic the mean over the recursion steps that have it."""
    parts = {"loss": supervised.total, **{f"loss/step_{k}": loss for k, loss in enumerate(supervised.losses)}}
    for name in dict.fromkeys(name for step in supervised.statistics for name in step):
        parts[name] = share * torch.stack([step[name] for step in supervised.statistics if name in step]).mean()
    return parts
