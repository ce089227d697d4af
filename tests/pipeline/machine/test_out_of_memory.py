"""Memory that is refused is told in one line, and nothing else is."""

import numpy
import pytest
import torch

from pipeline import launcher
from pipeline.machine.out_of_memory import MEND, out_of_memory

CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 11.19 MiB is free."
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"  # as TORCH_CUDABLAS_CHECK says it


def raised(work):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        work()
    return caught.value


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory; "),
        (torch.OutOfMemoryError(CUDA), "out of memory (CUDA out of memory. Tried to allocate 20.00 MiB); "),
        (RuntimeError(CUBLAS), f"out of memory ({CUBLAS}); "),
        (raised(lambda: torch.empty(1 << 60, dtype=torch.uint8)), "1152921504606846976 bytes"),
        (raised(lambda: numpy.empty(1 << 55)), "Unable to allocate 256. PiB for an array with shape"),
    ],
)
def test_memory_that_is_refused_is_one_line_that_says_what_to_do(error, told):
    said = out_of_memory(error)
    assert said.startswith("out of memory") and told in said and said.endswith(MEND) and "\n" not in said


def test_other_errors_are_none_of_it():
    assert out_of_memory(RuntimeError(CUBLAS.replace("ALLOC_FAILED", "EXECUTION_FAILED"))) is None
    assert out_of_memory(RuntimeError("shape '[3]' is invalid for input of size 4")) is None
    assert out_of_memory(raised(lambda: torch.ones(2) @ torch.ones(3))) is None


def test_a_stage_ends_with_that_line_and_another_error_stays_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(launcher, "run", lambda arguments: torch.empty(1 << 60, dtype=torch.uint8))
    assert launcher.main(["warmup", "--out=a"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: warmup: out of memory (DefaultCPUAllocator") and said.count("\n") == 1
    monkeypatch.setattr(launcher, "run", lambda arguments: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        launcher.main(["warmup"])
