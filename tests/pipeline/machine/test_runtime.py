"""The machine as settings: a device that is not there is refused, precision and threads take effect."""

import os
import subprocess
import sys

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime
from tests.conftest import ROOT


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_gpu_is_refused(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"Runtime.device is '{device}', but no CUDA device is visible here; use 'cpu'"):
        Runtime(device=device)


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match=r"Runtime.device is 'gpu'"):
        Runtime(device="gpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_matrix_products(precision, dtype):
    with Runtime(precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def state():
    """What of the process ``Runtime`` may change."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "environment": dict(os.environ),
    }


def test_to_make_one_changes_nothing():
    before = state()
    Runtime(threads=2)
    assert state() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_within_it_threads_are_what_was_set_and_computation_is_deterministic(threads):
    with Runtime(threads=threads).in_force():
        assert torch.get_num_threads() == threads and torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory and "CUBLAS_WORKSPACE_CONFIG" in os.environ


@pytest.mark.parametrize("own", [None, ":16:8"])
@pytest.mark.parametrize("warn_only", [False, True])
def test_the_process_is_as_it_was_afterwards_an_error_or_not(monkeypatch, own, warn_only):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if own:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own)
    torch.use_deterministic_algorithms(warn_only, warn_only=warn_only)
    before = state()
    try:
        with pytest.raises(ZeroDivisionError), Runtime(threads=2).in_force():
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == own or own is None
            raise ZeroDivisionError
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_stage_enters_it_for_its_process():
    """In a process of its own: it stays in force."""
    code = (
        "import torch; from pipeline.machine.runtime import Runtime; Runtime(threads=1).enter_process(); "
        "print(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["1", "True"]
