"""Whether numbers are finite: what is not is neither kept nor continued from."""

from collections.abc import Mapping

import torch
from torch import Tensor


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Find the first tensor that holds a number that is not finite."""
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floating:
        return None
    finite = torch.stack([tensor.isfinite().all().cpu() for tensor in floating.values()])
    return None if bool(finite.all()) else list(floating)[int(finite.int().argmin())]
