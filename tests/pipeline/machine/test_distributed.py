"""Processes of a job: what they exchange is exact and in order, the first one speaks, and one that is left alone says so."""

import re

import pytest
import torch

from components.training.summation import pairwise
from pipeline.errors import ConfigError
from pipeline.machine import distributed
from pipeline.machine.process import INTERRUPTED, LOST, Lost
from tests.support.jobs import forked, together

GROUP = """
import time
from pathlib import Path
import torch
from pipeline.machine.distributed import any_of, barrier, first_alone, gathered, joined, rank, summed, world

def parts(of):
    g = torch.Generator().manual_seed(of)
    return [torch.randn(n, generator=g) * 10.0 ** torch.randint(-6, 6, (n,), generator=g) for n in (7, 1, 24)]

with joined():
    print(f"printed by {rank()} of {world()}")
    mine = parts(rank())
    mine[2] = mine[2].view(2, 3, 4)
    found = {"given": [tensor.clone() for tensor in mine]}  # which a sum overwrites
    found |= {"sum": summed(mine), "short": summed([torch.tensor(float(rank()))])}
    found["double"] = summed([torch.ones(2, dtype=torch.float64)])
    found["gathered"] = gathered({"rank": rank(), "text": "x" * (1 + 1000 * rank())})
    found["any"] = [any_of(False), any_of(rank() == world() - 1), any_of(True)]
    with first_alone():
        if rank() == 0:
            time.sleep(0.5)  # the others would be here long ago
            Path("order").write_text("0")
        found["saw"] = Path("order").is_file()
    barrier()
    torch.save(found, f"found-{rank()}")
"""


@pytest.fixture(scope="module", params=[2, 3])
def group(request, tmp_path_factory):
    """What each process of a group printed, and what it found."""
    folder = tmp_path_factory.mktemp(f"group{request.param}")
    done = forked(GROUP, request.param, folder)
    assert all(process.returncode == 0 for process in done), [process.stderr for process in done]
    return [process.stdout for process in done], [
        torch.load(folder / f"found-{rank}", weights_only=True) for rank in range(request.param)
    ]


def test_a_sum_is_the_tree_of_one_process_bit_for_bit(group):
    found = group[1]
    for i in range(3):
        given = torch.stack([of["given"][i].flatten() for of in found])
        expected = pairwise(given).view(found[0]["given"][i].shape)
        assert all(torch.equal(of["sum"][i], expected) for of in found)
    if len(found) == 3:  # the tree is a choice: another order would give other bits
        assert not torch.equal(given[0] + (given[1] + given[2]), expected.flatten())


def test_a_sum_may_have_fewer_numbers_than_there_are_processes(group):
    found = group[1]
    assert [of["short"][0].item() for of in found] == [sum(range(len(found)))] * len(found)
    assert found[0]["short"][0].shape == ()


def test_a_sum_keeps_its_dtype(group):
    found = group[1]
    assert all(of["double"][0].dtype == torch.float64 and of["double"][0].tolist() == [len(found)] * 2 for of in found)


BUCKETS = """
import torch
from pipeline.machine import distributed
from pipeline.planning import memory

SIZES = {
    "larger than a bucket": [25], "of many buckets": [7, 100, 3], "as large as one": [10, 10], "many small": [1] * 23,
    "none": [0, 4, 0], "one over": [11, 9],
}

def numbers(n, g, dtype=torch.float32):
    return (torch.randn(n, generator=g) * 10.0 ** torch.randint(-6, 6, (n,), generator=g)).to(dtype)

def cases(g):
    yield from ((name, [numbers(n, g) for n in sizes]) for name, sizes in SIZES.items())
    yield "types", [numbers(9, g, dtype) for dtype in (torch.bfloat16, torch.float64, torch.float32, torch.float16)]
    yield "strides", [numbers(12, g).view(3, 4).t(), numbers(5, g)[::2], numbers(1, g)[0]]

with distributed.joined():
    g, found = torch.Generator().manual_seed(distributed.rank()), {}
    for name, mine in cases(g):
        given = [tensor.clone() for tensor in mine]
        for size in (10, 7, distributed.BUCKET):
            distributed.BUCKET, before = size, distributed.BUCKET
            found[f"{name}, {size}"] = {"given": given, "sum": distributed.summed([tensor.clone() for tensor in given])}
            distributed.BUCKET = before
    for n, size in ((20_000, 1000), (80_000, 1000), (20_001, distributed.BUCKET)):
        mine = [torch.ones(n), *(torch.ones(100) for _ in range(n // 1000))]
        distributed.BUCKET = size
        found[f"beside {n}"] = memory.peak(lambda: distributed.summed(mine)) / sum(tensor.nbytes for tensor in mine)
    torch.save(found, f"found-{distributed.rank()}")
"""


@pytest.fixture(scope="module", params=[1, 2, 4])
def bucketed(request, tmp_path_factory):
    """What each process of a group found that sums in buckets of several sizes."""
    folder = tmp_path_factory.mktemp(f"buckets{request.param}")
    done = forked(BUCKETS, request.param, folder)
    assert all(process.returncode == 0 for process in done), [process.stderr for process in done]
    return [torch.load(folder / f"found-{rank}", weights_only=True) for rank in range(request.param)]


def test_sums_in_buckets_are_those_of_whole_tensors_bit_for_bit(bucketed):
    cases = [name for name in bucketed[0] if not name.startswith("beside")]
    assert len(cases) == 8 * 3
    for name in cases:
        for i, total in enumerate(bucketed[0][name]["sum"]):
            given = [of[name]["given"][i] for of in bucketed]
            expected = pairwise(torch.stack([tensor.float().flatten() for tensor in given])).view(given[0].shape)
            assert total.dtype == given[0].dtype
            assert all(torch.equal(of[name]["sum"][i], expected.to(total.dtype)) for of in bucketed), name


def test_a_sum_takes_a_few_buckets_beside_however_large_its_tensors_are(bucketed):
    """Of 20,000 and 80,000 numbers, in buckets of 1,000; 20,001 lie in one, of which several copies are made."""
    for of in bucketed:
        assert len(bucketed) == 1 or of["beside 20001"] > 3
        assert of["beside 20000"] <= 0.25 and of["beside 80000"] <= 0.25 / 4


def test_values_come_in_the_order_of_the_processes(group):
    for of in group[1]:
        assert [value["rank"] for value in of["gathered"]] == list(range(len(group[1])))
        assert [len(value["text"]) for value in of["gathered"]] == [1 + 1000 * rank for rank in range(len(group[1]))]


def test_one_process_that_says_so_is_enough(group):
    assert all(of["any"] == [False, True, True] for of in group[1])


def test_the_first_process_goes_ahead(group):
    assert all(of["saw"] for of in group[1])


def test_only_the_first_process_prints(group):
    told = group[0]
    assert told == [f"printed by 0 of {len(told)}\n", *[""] * (len(told) - 1)]


def test_one_process_alone_needs_nothing_of_a_group():
    x = torch.randn(3, 2)
    with distributed.joined(), distributed.first_alone():
        distributed.barrier()
        assert not torch.distributed.is_initialized()
        [total] = distributed.summed([x])
    assert torch.equal(total, x)
    assert (distributed.rank(), distributed.world(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.gathered("x") == ["x"]
    assert [distributed.any_of(False), distributed.any_of(True)] == [False, True]


LEFT = """
import os, signal
from pipeline.machine.distributed import barrier, gathered, joined, rank
from pipeline.machine.process import LOST, Lost, leave

try:
    with joined():
        barrier()
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        gathered(1)
except Lost as error:
    print("lost:", error)
    leave(LOST)
"""


def test_a_process_whose_partner_is_gone_says_so_in_one_line(tmp_path):
    left, gone = together(LEFT, 2, tmp_path)
    assert gone.returncode == -9 and left.returncode == LOST, left.stderr
    assert re.fullmatch(r"lost: lost process 1 of 2 \(.+\); run it again to continue\n", left.stdout)


def test_an_error_of_ones_own_is_not_taken_for_a_lost_partner():
    for kind in (ValueError, torch.OutOfMemoryError):
        with pytest.raises(kind, match="mine"), distributed._together():
            raise kind("mine")
    message = r"lost the other processes \(Connection closed\); run it again"
    with pytest.raises(Lost, match=message), distributed._together():
        raise RuntimeError("[/there/gloo/tcp/pair.cc:1] Connection closed. See elsewhere.")


WAITS = """
import os, signal, time
from pipeline.machine.distributed import gathered, joined, rank
from pipeline.machine.process import INTERRUPTED, Interrupted, leave
from pathlib import Path

try:
    with joined():
        gathered(1)
        if rank() == 0:
            try:
                raise Interrupted("enough")
            finally:
                time.sleep(0.5)
                Path("written").touch()
        raise Interrupted("enough")
except Interrupted:
    leave(INTERRUPTED if Path("written").is_file() else 1)  # as stages do: the group's threads would abort a process that exits
"""


def test_after_an_interruption_none_ends_before_the_first_has_written(tmp_path):
    assert [(process.returncode, process.stderr) for process in together(WAITS, 2, tmp_path)] == [(INTERRUPTED, "")] * 2


SLOW = """
import time
from pipeline.machine.distributed import barrier, gathered, joined, rank
from pipeline.machine.process import LOST, Lost, leave

try:
    with joined():
        barrier()
        time.sleep({1: 12, 2: 2}.get(rank(), 0))
        gathered(1)
except Lost as error:
    print("lost:", error)
    leave(LOST)
"""


def test_who_waited_in_vain_names_the_one_that_did_not_come(tmp_path, monkeypatch):
    monkeypatch.setenv(distributed.TIMEOUT, "5")
    first, slow, _ = together(SLOW, 3, tmp_path)
    assert re.fullmatch(r"lost: lost process 1 of 3 \(Timed out waiting 5000ms for .+\); run it again to continue\n", first.stdout)
    assert slow.stdout.startswith("lost: lost the other processes (")


HANGS = """
import os, signal, subprocess, time
import torch
from torch import distributed
from pipeline.machine.distributed import as_one, barrier, joined, rank
from pipeline.machine.process import LOST, Lost, leave

try:
    with joined(), as_one():
        barrier()
        if rank() == {0}:
            subprocess.Popen(["sh", "-c", f"sleep {1}; kill -CONT {{os.getpid()}}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.all_reduce(torch.ones(1))
except Lost as error:
    print("lost:", error)
    leave(LOST)
"""


@pytest.mark.parametrize(("rank", "seconds"), [(1, 7), pytest.param(0, 30, marks=pytest.mark.slow)])
def test_who_waits_in_a_librarys_sum_names_the_one_that_hangs(tmp_path, monkeypatch, rank, seconds):
    """The first of three to give up closes the others' connections, which are not taken for hung. One that hangs has the store."""
    monkeypatch.setenv(distributed.TIMEOUT, "3")
    ended = together(HANGS.format(rank, seconds), 3, tmp_path)
    [*others] = (process.stdout for number, process in enumerate(ended) if number != rank)
    line = rf"lost: lost process {rank} of 3 \(.+\); run it again to continue\n"
    assert any(re.fullmatch(line, told) for told in others)
    assert all(re.fullmatch(line, told) or told.startswith("lost: lost the other processes (") for told in others)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "half an hour", "1000000"])
def test_what_is_no_time_to_wait_is_refused(monkeypatch, text):
    monkeypatch.setenv(distributed.TIMEOUT, text)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=f"SLOTLOOP_TIMEOUT is '{text}'; expected how many seconds"), distributed.joined():
        pass
