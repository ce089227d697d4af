"""Peak memory of a computation, exact to the byte, by running it: what benches and examples compare."""

import os
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # below that the profiler says on stderr when it starts and stops


def peak(work: Callable[[], object]) -> int:
    """Most bytes that were allocated at once while it ran, beyond those that were there before; of the GPU if there is one."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    ordered = sorted(events, key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in ordered), initial=0))
