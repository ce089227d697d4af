"""Device, precision, threads and determinism: the machine as settings."""

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, Literal

import torch

from components.ranges import Range
from pipeline.errors import ConfigError
from pipeline.machine.distributed import local_rank, world

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS is not deterministic


def device_of(name: str) -> torch.device:
    """Read the name of a device that computes, whether this machine has it or not.

    Raises:
        ConfigError: torch knows no such device, or it holds no numbers.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"runtime.Runtime.device is '{name}', which torch does not know; use 'cpu' or 'cuda'") from None
    if device.type == "meta":
        raise ConfigError(f"runtime.Runtime.device is '{name}', which computes nothing; use 'cpu' or 'cuda'")
    return device


class Runtime:
    """Where and how something computes. To make one changes nothing of the process: ``in_force`` does
    for as long as it is entered, ``enter_process`` for good.

    Args:
        device: "cpu", "cuda", "cuda:1" ...; with several processes "cuda" gives each its own GPU.
        precision: "bf16" runs matrix products in bfloat16 (weights and residual stream stay float32); several times faster on
            GPUs and on CPUs with bf16 units.
        threads: CPU threads; part of the result's bits, hence a setting and not what the machine happens to have.

    Raises:
        ConfigError: the device does not exist here.
    """

    def __init__(
        self,
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        threads: Annotated[int, Range(ge=1, le=1024)] = 2,
    ) -> None:
        self.threads, self.device, self.precision = threads, device_of(device), precision
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"runtime.Runtime.device is '{device}', but no CUDA device is visible here; use 'cpu'")
        if device == "cuda" and world() > 1:
            self.device = torch.device("cuda", local_rank())

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Compute with these threads, deterministically and on this device; the process is as it was afterwards."""
        threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
        workspace = os.environ.get(WORKSPACE)
        fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        current = torch.cuda.current_device() if self.device.type == "cuda" else None
        try:
            self.enter_process()
            yield
        finally:
            if current is not None:
                torch.cuda.set_device(current)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.set_deterministic_debug_mode(deterministic)
            torch.set_num_threads(threads)
            if workspace is None:
                os.environ.pop(WORKSPACE, None)

    def enter_process(self) -> None:
        """Put these settings in force for good: for a stage, whose process is its own."""
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.set_num_threads(self.threads)
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler, which takes a second
        # Filling memory that nobody reads is a check for debugging, and costs 12 % of a small model's step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what NCCL exchanges lies there

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products in the chosen precision."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield
