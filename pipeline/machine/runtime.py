"""Device, precision, threads and determinism: the machine as settings."""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import torch

from pipeline.errors import ConfigError
from pipeline.machine.distributed import local_rank, world


class Runtime:
    """Where and how a stage computes.

    Args:
        device: "cpu", "cuda", "cuda:1" ...; with several processes "cuda" gives each its own GPU.
        precision: "bf16" runs matrix products in bfloat16 (weights and residual stream stay float32); several times faster on
            GPUs and on CPUs with bf16 units.
        threads: CPU threads; part of the result's bits, hence a setting and not what the machine happens to have.

    Raises:
        ConfigError: the device does not exist here.
    """

    def __init__(self, device: str = "cpu", precision: Literal["fp32", "bf16"] = "fp32", threads: int = 2) -> None:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        # Filling memory that nobody reads is a check for debugging, and costs 12 % of a small model's step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            self.device, self.precision = torch.device(device), precision
        except RuntimeError:
            raise ConfigError(f"Runtime.device is '{device}', which torch does not know; use 'cpu' or 'cuda'") from None
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"Runtime.device is '{device}', but no CUDA device is visible here; use 'cpu'")
        if device == "cuda" and world() > 1:
            self.device = torch.device("cuda", local_rank())
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what NCCL exchanges lies there

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products in the chosen precision."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield
