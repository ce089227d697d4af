"""Timing on one device: medians by CUDA events, peak memory, kernels launched. On CPU wall time, and None for the rest."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

from components.objective import linear_cross_entropy as head

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
NOMINAL = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12}  # dense bfloat16, of the makers' data sheets

Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Timing:
    """What some runs took.

    Attributes:
        ms: median.
        spread: (largest - smallest) / median.
        peak: most bytes beyond what was there before; None on CPU.
    """

    ms: float
    spread: float
    peak: int | None

    def row(self) -> Row:
        """As columns."""
        return {"ms": self.ms, "spread": self.spread, "peak_gb": None if self.peak is None else self.peak / 1e9}


class Budget:
    """The wall time of a section: what begins after it is left out, with a note."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def attempt(self, what: str, measure: Callable[[], list[Row]]) -> list[Row]:
        """The rows of one measurement; none, and the reason printed, if it fails or time is up."""
        if time.monotonic() > self.end:
            print(f"{what}: left out, the section's time is up", flush=True)
            return []
        try:
            return measure()
        except Exception as error:  # whatever it is, the other rows are worth having
            print(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
            return []
        finally:
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()


def timed(run: Callable[[], object], repeats: int = 10, warm: int = 3, seconds: float = 4.0) -> Timing:
    """Median of at most ``repeats`` runs within about ``seconds``, after ``warm`` that do not count."""
    for _ in range(warm if CUDA else 1):
        run()
    synchronize()
    before = torch.cuda.memory_allocated() if CUDA else 0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    taken: list[float] = []
    began = time.monotonic()
    while len(taken) < repeats and (len(taken) < 2 or time.monotonic() - began < seconds):
        taken.append(_once(run))
    middle = statistics.median(taken)
    peak = torch.cuda.max_memory_allocated() - before if CUDA else None
    return Timing(middle, (max(taken) - min(taken)) / middle, peak)


def _once(run: Callable[[], object]) -> float:
    """Milliseconds of one run."""
    if not CUDA:
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * 1e3
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def launched(run: Callable[[], object]) -> Row:
    """Kernels that one run launches, and how long they kept the GPU busy."""
    if not CUDA:
        return {"kernels": None, "busy_ms": None}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        synchronize()
    kernels = [event for event in profile.events() or [] if event.device_type.name == "CUDA"]
    return {"kernels": len(kernels), "busy_ms": sum(event.device_time for event in kernels) / 1e3}


def synchronize() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def peak_flops(measured: float) -> float:
    """FLOP/s the device's maker names, or those of the largest product measured here."""
    name = torch.cuda.get_device_name() if CUDA else ""
    return next((flops for model, flops in NOMINAL.items() if model in name), measured)


@contextmanager
def fused_softmax() -> Iterator[None]:
    """The pointwise part of our head as one compiled kernel."""
    compiled = torch.compile(head._softmax_gradient, dynamic=False)
    with mock.patch.object(head, "_softmax_gradient", compiled):
        yield


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """The same work as one CUDA graph."""
    if not CUDA:
        raise RuntimeError("a CUDA graph needs a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
