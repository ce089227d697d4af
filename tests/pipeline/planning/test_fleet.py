"""For which devices to plan: numbers that are given, a rate that is measured here, and what is no number."""

import gin
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.planning.fleet import fleet
from pipeline.training import flops

WARMUP = """from __gin__ import dynamic_registration
from pipeline.machine import runtime
from stages import warmup
warmup.run.runtime = @runtime.Runtime()
runtime.Runtime.device = '{device}'
runtime.Runtime.threads = 1
"""


@pytest.fixture(autouse=True)
def _left_as_it_was():
    yield
    gin.clear_config()


def test_a_speed_that_is_given():
    found = fleet("", "989", "0.5")
    rate, source = found.rate, found.source
    assert rate == 989e12 / 2 and source == "989 TFLOP/s (as given), 50% of them used (MFU, as given)"
    assert fleet("", "989").rate == 989e12 * 0.4 and "a guess: --mfu" in fleet("", "989").source
    assert (found.processes, found.memory) == (1, 0)


def test_a_speed_that_is_measured_here(monkeypatch):
    monkeypatch.setattr(flops, "ceiling", lambda runtime: 2e11 if str(runtime.device) == "cpu" else None)
    found = fleet(WARMUP.format(device="cpu"), "", "0.25")
    rate, source = found.rate, found.source
    assert rate == 5e10
    assert source.startswith("0.2 TFLOP/s (a matrix product here: device cpu, precision fp32, threads 1), 25% of them")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_machine_that_is_not_here_is_asked_for():
    found = fleet(WARMUP.format(device="cuda"))
    rate, source = found.rate, found.source
    assert rate == 0 and "no CUDA device is visible here" in source and "give --peak (TFLOP/s of the device)" in source


@pytest.mark.parametrize(
    "peak, mfu", [("fast", ""), ("0", ""), ("-3", ""), ("nan", ""), ("989", "1.5"), ("989", "0"), ("989", "40%")]
)
def test_numbers_that_are_none(peak, mfu):
    with pytest.raises(ConfigError, match=r"--(peak|mfu) is '.*'; expected a number above 0 and at most 1"):
        fleet("", peak, mfu)


@pytest.mark.parametrize(
    ("processes", "memory", "said"),
    [
        ("two", "", "--processes is 'two'; expected a number above 0"),
        ("0", "", "--processes is '0'"),
        ("1.5", "", "--processes is '1.5'; expected a whole number"),
        ("2", "-80", "--memory is '-80'; expected a number above 0"),
        ("2", "80GB", "--memory is '80GB'"),
    ],
)
def test_devices_that_are_none(processes, memory, said):
    with pytest.raises(ConfigError, match=said):
        fleet("", "989", "", processes, memory)


def test_what_is_not_said_is_not_known_and_bytes_are_given_in_gigabytes():
    bare = fleet("", "989")
    assert (bare.processes, bare.memory, bare.link, bare.reading, bare.price, bare.storage) == (1, 0, 0, 0, 0, 0)
    said = fleet("", "989", processes="8", memory="80", link="50", reading="2.5", price="2", storage="23")
    assert (said.processes, said.memory, said.link, said.reading, said.price, said.storage) == (8, 80e9, 50e9, 2.5e9, 2.0, 23.0)


@pytest.mark.parametrize("name", ["memory", "link", "reading", "price", "storage"])
def test_every_number_has_to_be_one(name):
    with pytest.raises(ConfigError, match=f"--{name} is 'much'; expected a number above 0"):
        fleet("", "989", **{name: "much"})
