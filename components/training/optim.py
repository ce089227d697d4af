"""AdamW or Muon over what is trainable, and the learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from components.ranges import Decay, NonNegativeFloat, NonNegativeInt, Share, in_range
from components.training.two_optimizers import TwoOptimizers

Named = tuple[str, nn.Parameter]


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
    groups = _groups(_trainable(parameters), lr, backbone_lr, weight_decay)
    return torch.optim.AdamW(groups, betas=betas, fused=True)


@in_range
def muon(
    parameters: Iterable[tuple[str, nn.Parameter]],
    lr: NonNegativeFloat = 3e-3,
    backbone_lr: NonNegativeFloat | None = None,
    weight_decay: NonNegativeFloat = 0.1,
    momentum: Decay = 0.95,
    betas: tuple[Decay, Decay] = (0.9, 0.95),
    others: Sequence[str] = ("embedding", "positions", "head", "embed_tokens", "lm_head", "wte", "wpe"),
) -> torch.optim.Optimizer:
    """Make Muon over trainable matrices inside a network, AdamW over all else: vectors, embeddings, heads, stacks of matrices.

    Muon's step is its momentum with all singular values near 1, times .2 sqrt(longer side): the rms of AdamW's step, so that both
    take the same rate and decay.

    Source: Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024); the scale: Liu et al., "Muon is Scalable for
    LLM Training" (2025), section 2.2.

    Args:
        parameters: with their names, as ``named_parameters()`` of a module gives them; frozen ones are left out.
        lr: peak learning rate; 0 = nothing moves.
        backbone_lr: peak learning rate of those below ``backbone.``; None = ``lr``.
        weight_decay: per unit of learning rate, of matrices.
        momentum: decay of Muon's only moment.
        betas: decay of AdamW's first and second moment.
        others: names of modules, or of matrices, that AdamW trains.

    Raises:
        ValueError: nothing is trainable.
    """
    named = _trainable(parameters)
    inner = [(name, parameter) for name, parameter in named if _is_inner(name, parameter, others)]
    outer = [(name, parameter) for name, parameter in named if not _is_inner(name, parameter, others)]
    parts: list[torch.optim.Optimizer] = []
    if inner:
        groups = _groups(inner, lr, backbone_lr, weight_decay)
        parts.append(torch.optim.Muon(groups, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
    if outer:
        parts.append(torch.optim.AdamW(_groups(outer, lr, backbone_lr, weight_decay), betas=betas, fused=True))
    return TwoOptimizers(parts)


def _is_inner(name: str, parameter: nn.Parameter, others: Sequence[str]) -> bool:
    """Whether a parameter is a matrix, of more than one row and column, and neither it nor its module is one of ``others``."""
    return parameter.ndim == 2 and min(parameter.shape) > 1 and not {*name.split(".")[-2:]} & {*others}


def _trainable(parameters: Iterable[Named]) -> list[Named]:
    """Those that are not frozen, of which there must be one."""
    named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    if not named:
        raise ValueError("nothing is trainable: every parameter of the model is frozen")
    return named


def _groups(named: Iterable[Named], lr: float, backbone_lr: float | None, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of one rate and one decay each."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = backbone_lr if backbone_lr is not None and name.startswith("backbone.") else lr
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": ps, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]


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
