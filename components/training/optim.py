"""AdamW over what is trainable, and the learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from components.ranges import Decay, NonNegativeFloat, NonNegativeInt, Share, in_range


@in_range
def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    lr: NonNegativeFloat = 3e-3,
    backbone_lr: NonNegativeFloat | None = None,
    weight_decay: NonNegativeFloat = 0.1,
    betas: tuple[Decay, Decay] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """Make AdamW over trainable parameters; matrices decay, vectors (norms, biases, gates) do not.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).

    Args:
        parameters: with their names, as ``named_parameters()`` of a module gives them; frozen ones are left out.
        lr: peak learning rate; 0 = nothing moves.
        backbone_lr: peak learning rate of those below ``backbone.``; None = ``lr``.
        weight_decay: per unit of learning rate.
        betas: decay of the first and second moment.

    Raises:
        ValueError: nothing is trainable.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            rate = backbone_lr if backbone_lr is not None and name.startswith("backbone.") else lr
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("nothing is trainable: every parameter of the model is frozen")
    return torch.optim.AdamW(
        [{"params": ps, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()],
        betas=betas,
        fused=True,
    )


@in_range
def warmup_cosine(step: int, steps: int, lr_warmup_steps: NonNegativeInt = 50, floor: Share = 0.05) -> float:
    """Multiplier of the peak learning rate at ``step`` (from 0): linear warm-up, then cosine decay to ``floor``.

    A run too short for its warm-up would never reach its rate: the warm-up takes half of a run at most.

    Args:
        step: number of the step.
        steps: of the run.
        lr_warmup_steps: steps over which the rate rises, half of the run at most; 0 = none.
        floor: multiplier at the end.

    >>> [round(warmup_cosine(s, 100, lr_warmup_steps=10), 2) for s in (0, 9, 55, 100)]
    [0.1, 1.0, 0.53, 0.05]
    """
    rising = min(lr_warmup_steps, steps // 2)
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, steps - rising))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Set every group's learning rate to ``multiplier`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * multiplier
