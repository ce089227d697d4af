"""The machine as settings: a device that is not there is refused, precision and threads take effect."""

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime


@pytest.fixture(autouse=True)
def _restore():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


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


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_what_was_set(threads):
    Runtime(threads=threads)
    assert torch.get_num_threads() == threads


def test_computation_is_deterministic():
    Runtime()
    assert torch.are_deterministic_algorithms_enabled()
