"""Floating-point operations of a computation, counted by running it: what compute-matched controls are matched by."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ONEDNN = "_linear_pointwise"  # what components.fused calls; absent where torch is built without oneDNN


def count(work: Callable[[], object]) -> int:
    """Run ``work`` and count the operations of its matrix products, forward and backward.

    Attention runs as plain products while counting: fused CPU kernels are invisible to the counter.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_known()) as counter:
        work()
    return int(counter.get_total_flops())


def _known() -> dict[Any, Any]:
    return {getattr(torch.ops.mkldnn, ONEDNN): _of_linear} if hasattr(torch.ops.mkldnn, ONEDNN) else {}


def _of_linear(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]
