"""What a fleet is said to take: memory by part, times of what is computed, sent and read, the limit, dollars."""

import doctest

import pytest

from pipeline.planning import fleet_report
from pipeline.planning.cost import Cost, Memory
from pipeline.planning.fleet import Fleet
from pipeline.planning.fleet_report import fleet_lines, times

GB = 10**9
WARMUP = Cost(
    "warmup",
    0,
    0,
    0,
    Memory(4 * GB, GB, 2 * GB, GB, batch=8 * GB),
    host=6 * GB,
    flops=3600 * 10**12,
    read=7200 * GB,
    sent=1800 * GB,
)  # fmt: skip
EXTRACT = Cost("extract", 0, 0, 0, Memory(16 * GB, batch=2 * GB), beside=1800 * 10**12)
COSTS = [EXTRACT, WARMUP]


def lines(advice=(), **known):
    """Of two devices of one TFLOP/s."""
    return fleet_lines(COSTS, Fleet(1e12, "as given", **{"processes": 2, **known}), advice)


def cells(lines, stage, table):
    rows = [row for text in lines for row in text.splitlines() if row.startswith(f"| {stage} ")]
    return [cell.strip() for cell in rows[table].strip("|").split("|")]


def test_of_one_device_of_which_nothing_is_known_nothing_is_said():
    assert lines(processes=1) == []


def test_memory_by_part():
    head = ["memory of a device", "weights", "gradients", "moments", "average", "gathered", "batch", "trunk", "all"]
    assert cells(lines(), "memory of a device", 0) == head
    assert cells(lines(), "warmup", 0) == ["warmup", "4 GB", "1 GB", "2 GB", "1 GB", "", "8 GB", "", "16 GB"]
    assert cells(lines(), "extract", 0) == ["extract", "16 GB", "", "", "", "", "2 GB", "", "18 GB"]
    assert "host: the first process takes up to 6 GB there to save (warmup)" in lines()


def test_what_does_not_fit_is_followed_by_advice():
    text = "\n".join(lines(["      extract: try this"], memory=17 * GB))
    assert "fits: NOT into the 17 GB of a device: extract (18 GB); docs/" in text and "-hold\n      extract: try this" in text
    fitting = "\n".join(lines(["never"], memory=18 * GB))
    assert "fits: every stage into the 18 GB of a device" in fitting
    assert "fits" not in "\n".join(lines(["never"])) and "never" not in "\n".join(lines(["never"]))


def test_a_rate_that_is_not_said_is_the_one_from_which_on_it_is_not_the_limit():
    assert cells(lines(), "warmup", 1) == [
        "warmup", "30 min", "1.8 TB", "from 1 GB/s", "7.2 TB", "from 4 GB/s", "computing", "30 min", ""
    ]  # fmt: skip
    assert cells(lines(), "extract", 1) == ["extract", "15 min", "", "", "", "", "computing", "15 min", ""]
    assert (
        lines()[-2] == "from: the rate from which on it takes no longer than computing; --link and --reading (GB/s) would say times"
    )


@pytest.mark.parametrize(
    ("known", "link", "reading", "limit", "time", "dollars"),
    [
        ({"link": 10 * GB}, "3 min", "from 4 GB/s", "computing", "33 min", ""),
        ({"link": 0.5 * GB}, "60 min", "from 4 GB/s", "link", "90 min", ""),
        ({"reading": 2 * GB}, "from 1 GB/s", "60 min", "reading", "60 min", ""),
        ({"link": GB, "reading": 2 * GB, "price": 3.0}, "30 min", "60 min", "reading", "60 min", "6.00"),
        ({"link": GB, "reading": 8 * GB, "price": 3.0}, "30 min", "15 min", "computing", "60 min", "6.00"),
        ({"link": GB, "memory": 15 * GB}, "30 min", "from 4 GB/s", "memory", "60 min", ""),
    ],
)
def test_the_limit_that_binds(known, link, reading, limit, time, dollars):
    """Sums wait for the backward pass; what is read comes while it computes."""
    said = cells(lines(**known), "warmup", 1)
    assert [said[3], *said[5:]] == [link, reading, limit, time, dollars]


def test_dollars_are_of_all_devices_and_stages():
    assert cells(lines(price=2.0), "all", 0)[-2:] == ["45 min", "3.00"]
    assert any("would say times" in line for line in lines(link=GB)) and not any("from:" in x for x in lines(link=GB, reading=GB))


def test_without_a_rate_of_computing_there_are_no_times():
    said = fleet_lines(COSTS, Fleet(0.0, "not told", processes=2), ())
    assert "| warmup " in said[1] and not any("computing" in line for line in said)


def test_times_of_what_is_not_known_are_none():
    taken = times(WARMUP, Fleet(1e12, ""))
    assert (taken.computing, taken.link, taken.reading, taken.all) == (3600, 0, 0, 3600)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(fleet_report) == (0, 1)
