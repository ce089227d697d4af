"""Taps: states that enter layers below the split, read beside those that enter it, as the drafters of speculative decoding read a
low, a middle and a high layer.

Source: Li et al., "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test" (2025), section 3.1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.backbones.backbone import BackboneModel


def numbered(taps: Sequence[int], layers: int) -> tuple[int, ...]:
    """Number the layers of taps from 0, where negative ones count from the last.

    >>> numbered((2, -3), 12)
    (2, 9)

    Raises:
        ValueError: the model has no such layer, or one is named twice.
    """
    for tap in taps:
        if not -layers <= tap < layers:
            raise ValueError(f"taps read the states that enter layers, of which there are {layers} (0 to {layers - 1}), got {tap}")
    numbers = tuple(tap % layers for tap in taps)
    if twice := [layer for place, layer in enumerate(numbers) if layer in numbers[:place]]:
        raise ValueError(f"taps must be layers of their own, got layer {twice[0]} twice in {list(taps)}")
    return numbers


def below_split(taps: Sequence[int], layers: int, split: int) -> tuple[int, ...]:
    """Number the layers of taps that are stored beside the states at the split.

    Raises:
        ValueError: as ``numbered``; or one does not lie below the split, where it would be stored twice or change in training.
    """
    numbers = numbered(taps, layers)
    for tap, layer in zip(taps, numbers, strict=True):
        if layer >= split:
            raise ValueError(
                f"tap {tap} is layer {layer}, at or above the split (layer {split}): its states are stored anyway, or made as it "
                f"runs; set TAPS to layers from 0 to {split - 1}"
                if split
                else f"tap {tap} needs a layer below the split, which is layer 0: set TAPS = ()"
            )
    return numbers


def tapped_trunk(
    backbone: BackboneModel,
    tokens: Int[Tensor, "batch seq"],
    attention: Bool[Tensor, "batch seq"] | None,
    split: int,
    taps: Sequence[int],
) -> Float[Tensor, "batch seq channels"]:
    """States that enter the split and, side by side behind them, those that enter the layers ``taps``: what extract stores."""
    with backbone.entering(taps) as states:
        hidden = backbone.trunk(tokens, attention, split)
    return torch.cat([hidden, *(states[layer].to(hidden.device) for layer in taps)], -1) if taps else hidden
