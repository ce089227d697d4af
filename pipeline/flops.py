"""Floating-point operations of a computation, counted by running it: what compute-matched controls are matched by."""

from collections.abc import Callable

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count(work: Callable[[], object]) -> int:
    """Run ``work`` and count the operations of its matrix products, forward and backward.

    Attention runs as plain products while counting: fused CPU kernels are invisible to the counter.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
