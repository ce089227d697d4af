"""A plan in words: times at a speed, room on the disk, and what the economics of the cache come to."""

import re
from dataclasses import replace

import gin
import pytest

from pipeline.planning import plan_report
from pipeline.planning.cost import Cost, Memory
from pipeline.planning.fleet import Fleet, fleet
from pipeline.planning.plan import Plan
from pipeline.planning.plan_report import summary

COSTS = [
    Cost("extract", 8_000_000_000, 0, 8_000_000_000, Memory(16 * 10**9, batch=2 * 10**9), beside=5 * 10**16, disk=31_400_000_000),
    Cost(
        "warmup",
        8_100_000_000,
        100_000_000,
        2_000_000_000,
        Memory(8 * 10**9, moments=6 * 10**9, batch=2 * 10**9),
        0,
        2200,
        5.0,
        85 * 10**12,
        187 * 10**15,
        10**15,
    ),
    Cost("finetune", 8_100_000_000, 1, 8_100_000_000),
]
PLAN = Plan(
    COSTS, trunk=7.28e12, step=3.11e12, draws=1, epochs=5.0, live=[], assumed=["a guess"], examples=7000, causal=False, wire=2e6
)


@pytest.fixture(autouse=True)
def _left_as_it_was():
    yield
    gin.clear_config()


def words(tmp_path, rate=1e15, **changes):
    return summary(replace(PLAN, **changes), Fleet(rate, "as given"), tmp_path)


def cells(text, stage):
    line = next(line for line in text.splitlines() if line.startswith(f"| {stage} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_each_stage_that_computes(tmp_path):
    text = words(tmp_path)
    assert cells(text, "extract") == ["extract", "8 G", "0", "8 G", "18 GB", "", "", "", "50 P", "50 s", "31.4 GB"]
    assert cells(text, "warmup") == [
        "warmup", "8.1 G", "100 M", "2 G", "16 GB", "2,200", "5.00", "85 T", "187 P", "3.1 min", ""
    ]  # fmt: skip
    assert cells(text, "all")[-3:] == ["238 P", "4 min", ""] and "finetune" not in text
    assert text.splitlines()[-1] == "assumed: a guess" and "speed: as given." in text


def test_without_a_speed_there_is_no_time(tmp_path):
    text = words(tmp_path, rate=0.0)
    assert cells(text, "warmup")[-2] == cells(text, "all")[-2] == "" and cells(text, "warmup")[-3] == "187 P"


@pytest.mark.parametrize(("free", "said"), [(40e9, "40.0 GB free\n"), (20e9, "20.0 GB free; THIS DOES NOT FIT\n")])
def test_room_on_the_disk(tmp_path, monkeypatch, free, said):
    monkeypatch.setattr(plan_report, "free_bytes", lambda folder: free)
    assert f"disk: 31.40 GB of states, {said}" in words(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            r"cached is cheaper: .* = 2\.276 \(F 7\.28 T .* C 3\.11 T .* M 1 draws, E 5\.00 .*\n +each mask is seen 5\.0 times",
        ),
        ({"causal": True}, r"cached is cheaper: .*\n +nothing is masked, so one stored draw is exact"),
        ({"live": ["joint"]}, r"cached is cheaper.*\n +joint runs the trunk live now: states = '@sources.cached' would save it"),
        ({"live": ["warmup", "joint"]}, r"\n +warmup and joint run the trunk live now"),
        (
            {"draws": 8},
            r"live is cheaper: .* = 0\.704 .*\n +fewer draws than epochs pay: DRAWS = 4 \(1\.163\); or run .*@sources.live",
        ),
        ({"draws": 5}, r"live is cheaper: .* = 1\.000 "),
        ({"draws": 8, "live": ["warmup", "joint"]}, r"live is cheaper: .*\n +which is what is set"),
        (
            {"epochs": 0.9},
            r"live is cheaper: .*\n +no example is seen twice, so nothing is re-used: .*@sources.live', or more epochs",
        ),
    ],
)
def test_which_is_cheaper_and_what_to_set(tmp_path, changes, said):
    assert re.search(said, words(tmp_path, **changes))


def test_what_a_trunk_elsewhere_sends_is_told_where_live_is_cheaper(tmp_path):
    said = "max(F, C) for F + C: 2 MB of states an example over the wire"
    assert f"{said}, and no link of 643 MB/s or more is the limit" in words(tmp_path, draws=8)  # 2 MB x 1e15 / 3.11e12
    assert said in words(tmp_path, rate=0.0, draws=8) and "no link of" not in words(tmp_path, rate=0.0, draws=8)
    assert "@sources.remote" not in words(tmp_path)


def test_several_devices_are_as_many_times_as_fast_and_what_fits_into_one_is_said(tmp_path):
    found = fleet("", "1000", "1", "2", "17")
    text = summary(PLAN, found, tmp_path)
    assert cells(text, "extract")[-2] == "25 s" and "used (MFU, as given), 2 processes that share every step." in text
    assert "memory: of each of 2 processes, weights" in text
    assert "fits: NOT into the 17 GB of a device: extract (18 GB); docs/troubleshooting.md#out-of-memory" in text
    assert "fits: every stage into the 18 GB of a device" in summary(PLAN, replace(found, memory=18e9), tmp_path)
    assert "fits" not in summary(PLAN, fleet("", "1000", "1"), tmp_path)
