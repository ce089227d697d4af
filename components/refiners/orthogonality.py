"""Orthogonality penalty: keeps the slots from carrying the same information.

The founding design penalises products of projection weights, W_i W_j^T. That product exists only where both projections read the
same vector: context and reasoning read the attention's heads, refinement a *difference* of two steps, confidence a variance
estimate; with slots of other input widths it cannot even be formed, and where it can, orthogonal weights say nothing about slots
of correlated inputs. What is used instead is what was meant: the cross-correlation over tokens of the slots' *values*, which
exists for every pair whatever the widths.
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def overlap(
    slots: Mapping[str, Float[Tensor, "batch seq _"]], attention: Bool[Tensor, "batch seq"] | None = None
) -> Float[Tensor, ""]:
    """Mean over pairs of slots of their mean squared cross-correlation: 0 (uncorrelated) .. 1 (the same). This is the penalty.

    All slots are standardised side by side: one correlation matrix, whose blocks off the diagonal are the pairs.

    Args:
        slots: by name, of any widths.
        attention: False at padding, which is left out.
    """
    values = list(slots.values())
    flat = rearrange(torch.cat(values, -1), "b s w -> (b s) w").float()
    weight = torch.ones_like(flat[:, :1]) if attention is None else rearrange(attention, "b s -> (b s) 1").float()
    centred = (flat - (flat * weight).sum(0) / weight.sum()) * weight
    standard = centred * (centred.square().sum(0) + 1e-8).rsqrt()
    squared = (standard.T @ standard).square()
    widths = [value.shape[-1] for value in values]
    blocks = [list(row.split(widths, 1)) for row in squared.split(widths, 0)]
    return torch.stack([blocks[i][j].mean() for i in range(len(values)) for j in range(i)]).mean()
