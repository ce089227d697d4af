"""Microbatches of a run: any step can be the first, and neither threads nor processes change what is in it."""

import subprocess
import sys
import threading
from collections import Counter
from dataclasses import fields
from itertools import islice

import pytest
import torch
from torchdata.nodes import Loader, Mapper

from components.batch import Batch
from components.objective.masking import exact_count
from pipeline.data import loading
from pipeline.data.batches import CachedSource, LiveSource
from pipeline.data.loading import TrainLoader, in_order
from pipeline.data.shard_writer import ShardError
from pipeline.errors import ConfigError, DataError
from tests.support.dvc import PATIENCE

READERS = pytest.mark.parametrize("readers", [0, 1, 3])
PAIRS = [(0, 1), (0, 3), (1, 2), (1, 4), (3, 1), (3, 3)]  # readers, processes: every pair of kinds, none and one and several


@pytest.fixture(params=["examples", "cached"])
def source_of(request, rows, vocabulary, shards_of):
    """``source_of(n)``: the same n rows, live or from shards."""

    def source(n):
        return CachedSource(shards_of(n), "train") if request.param == "cached" else LiveSource(rows(n), vocabulary, exact_count, 0)

    return source


@pytest.fixture
def as_process(monkeypatch):
    """``as_process(rank, world)``: from now on this is one process of several."""

    def become(rank, world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))

    return become


@pytest.fixture
def reading(monkeypatch):
    """``reading(n)``: from now on n threads read ahead."""
    return lambda readers: monkeypatch.setenv("SLOTLOOP_READERS", str(readers))


def same(a: Batch, b: Batch):
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch)]
    return all(x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def alike(a, b):
    """Two lists of steps, each a list of microbatches."""
    assert [len(step) for step in a] == [len(step) for step in b] and a
    return all(same(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def ids(step):
    return [int(row) for batch in step for row in batch.targets[:, 0]]


def taken(training, first, accumulation, count):
    """``count`` steps from ``first`` on; the threads end with them."""
    steps = training.steps(first, accumulation)
    found = list(islice(steps, count))
    steps.close()
    return found


# Steps


@pytest.mark.parametrize(("n", "size", "accumulation"), [(24, 4, 1), (30, 4, 2), (13, 5, 2), (40, 40, 1), (29, 3, 4), (12, 1, 12)])
def test_every_row_is_seen_once_an_epoch_and_every_microbatch_is_full(source_of, n, size, accumulation):
    training, epochs = TrainLoader(source_of(n), size, seed=7), 3
    steps = taken(training, 0, accumulation, -(-epochs * n // (size * accumulation)))
    assert {len(step) for step in steps} == {accumulation} and {len(batch) for step in steps for batch in step} == {size}
    assert training.sequences(accumulation) == size * accumulation
    seen = [row for step in steps for row in ids(step)]
    for epoch in range(epochs):
        assert Counter(seen[epoch * n : (epoch + 1) * n]) == Counter(range(n))
    assert seen[:n] != seen[n : 2 * n] and seen[:n] != list(range(n))


def test_a_row_comes_as_it_is_in_its_epoch(rows, vocabulary):
    """Also in the step that reaches over the end of an epoch."""
    source = LiveSource(rows(10), vocabulary, exact_count, 0)
    for place, batch in enumerate(batch for step in taken(TrainLoader(source, 4, seed=0), 0, 1, 8) for batch in step):
        epochs = torch.arange(4 * place, 4 * place + 4) // 10
        assert same(batch, source.batch(batch.targets[:, 0], epochs))


def test_order_is_a_function_of_the_seed(source_of):
    source = source_of(40)
    order = [[ids(step) for step in taken(TrainLoader(source, 8, seed), 0, 1, 5)] for seed in (0, 1, 0)]
    assert order[0] == order[2] != order[1]


@pytest.mark.parametrize(("readers", "first"), [(0, 1), (1, 3), (2, 15), (4, 23), (4, 3), (2, 1)])
def test_any_step_can_be_the_first(source_of, reading, readers, first):
    """Three and three quarter steps an epoch: within an epoch, over a border, at one, many epochs on."""
    source = source_of(30)
    reading(0)
    whole = taken(TrainLoader(source, 4, seed=3), 0, 2, 26)
    reading(readers)
    assert alike(taken(TrainLoader(source, 4, seed=3), first, 2, 26 - first), whole[first:])


def test_steps_follow_each_other_at_a_border_of_epochs_that_is_one_of_steps(source_of):
    source = source_of(24)
    whole = taken(TrainLoader(source, 4, seed=3), 0, 2, 8)
    for first in (3, 6):
        assert alike(taken(TrainLoader(source, 4, seed=3), first, 2, 8 - first), whole[first:])


@pytest.mark.parametrize(("readers", "world"), PAIRS)
def test_processes_share_the_microbatches_of_a_step(source_of, as_process, reading, readers, world):
    training = TrainLoader(source_of(30), 2, seed=5)
    reading(0)
    alone = taken(training, 2, 12, 4)
    reading(readers)
    shares = []
    for rank in range(world):
        as_process(rank, world)
        shares.append(taken(training, 2, 12, 4))
    assert all(len(step) == 12 // world for share in shares for step in share)
    assert alike([[batch for share in step for batch in share] for step in zip(*shares, strict=True)], alone)


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (2, 3), (4, 6), (3, 4)])
def test_microbatches_that_cannot_be_shared_are_refused(rows, vocabulary, as_process, world, accumulation):
    as_process(0, world)
    message = (
        rf"{world} processes cannot share {accumulation} microbatches a step equally; set loop.fit.accumulation to a multiple of"
    )
    with pytest.raises(ConfigError, match=message):
        TrainLoader(LiveSource(rows(30), vocabulary, exact_count, 0), 1, seed=0).steps(0, accumulation)


def test_a_step_larger_than_the_data_is_refused(source_of):
    training = TrainLoader(source_of(24), 5, seed=0)
    with pytest.raises(ConfigError, match=r"a step of 25 rows needs at least as many training examples, there are 24"):
        training.steps(0, 5)
    assert len(taken(training, 0, 4, 1)[0]) == 4


def test_rows_of_one_length_make_up_a_step(rows, vocabulary):
    split = rows(32)
    valid = torch.arange(6) < torch.where(torch.arange(32) % 2 == 0, 3, 6)[:, None]
    split = type(split)(**{**vars(split), "response": split.response & valid, "valid": valid})
    steps = taken(TrainLoader(LiveSource(split, vocabulary, exact_count, 0, buckets=(3,)), 4, seed=0), 0, 2, 4)
    widths = [{batch.tokens.shape[1] for batch in step} for step in steps]
    assert all(len(width) == 1 for width in widths) and Counter(map(max, widths)) == {3: 2, 6: 2}


def test_rows_come_near_each_other_when_asked(shards_of):
    """Eight blocks of four rows; two at a time."""
    for near, most in ((2, 2), (0, 8)):
        steps = taken(TrainLoader(CachedSource(shards_of(32), "train", near=near), 8, seed=1), 0, 1, 4)
        blocks = [len({row // 4 for row in ids(step)}) for step in steps]
        assert max(blocks) <= most and (near or min(blocks) > 2)


# Where training stands


def test_a_state_is_accepted_by_the_same_order(source_of):
    source = source_of(30)
    for step in (0, 7):
        state = TrainLoader(source, 4, seed=3).state_dict(step, 2)
        assert state["step"] == step
        TrainLoader(source, 4, seed=3).load_state_dict(state, 2)
        TrainLoader(source, 2, seed=3).load_state_dict(state, 4)  # the same rows a step, in other microbatches


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"seed 3 instead of 4"),
        ({"size": 2}, r"size 8 instead of 4"),
        ({"n": 29}, r"rows 30 instead of 29, data a instead of b"),
        ({"data": "c"}, r"data a instead of c"),
        ({"seed": 4, "size": 8}, r"size 8 instead of 16, seed 3 instead of 4"),
    ],
)
def test_a_state_of_another_order_is_refused_with_both_values(rows, vocabulary, changes, message):
    def training(n=30, size=4, seed=3, data="a"):
        data = data if n == 30 else "b"
        return TrainLoader(LiveSource(rows(n), vocabulary, exact_count, 0, fingerprint=data), size, seed)

    with pytest.raises(DataError, match=rf"the snapshot belongs to another order of examples: {message}; remove .scratch"):
        training(**changes).load_state_dict(training().state_dict(5, 2), 2)


@READERS
@pytest.mark.parametrize("count", [0, 1, 5, 11])
def test_the_nodes_state_continues_in_another_graph(source_of, reading, readers, count):
    """Through torchdata's own loader, whose state is that of what it has handed out, not of what is read ahead."""
    reading(readers)
    training = TrainLoader(source_of(30), 4, seed=3)
    whole = [made() for made in islice(training.node(2, 3), 20)]
    one = Loader(training.node(2, 3))
    begun = [made() for made in islice(iter(one), count)]
    other = Loader(training.node(0, 3))
    other.load_state_dict(one.state_dict())
    assert alike([begun + [made() for made in islice(iter(other), 20 - count)]], [whole])
    assert one.state_dict()["root"] == {"step": 2 + count // 3, "microbatch": count % 3}


# Threads


def readers_of(before):
    return set(threading.enumerate()) - before


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("end", ["closed", "abandoned", "exhausted", "failed"])
def test_no_thread_outlives_its_loader(rows, vocabulary, reading, readers, end):
    reading(readers)
    before = set(threading.enumerate())
    source = (Failing if end == "failed" else LiveSource)(rows(24), vocabulary, exact_count, 0)
    steps = in_order(source, 4) if end == "exhausted" else TrainLoader(source, 4, seed=0).steps(0, 2)
    next(steps)
    assert readers_of(before)
    if end == "closed":
        steps.close()
    elif end == "exhausted":
        assert len(list(steps)) == 5
    elif end == "failed":
        with pytest.raises(ShardError):
            list(steps)
    del steps
    for thread in readers_of(before):
        thread.join(PATIENCE)
    assert not readers_of(before)


@pytest.mark.parametrize("readers", [1, 3])
def test_no_batch_is_being_made_when_a_loader_has_ended(rows, vocabulary, reading, readers):
    """A daemon thread within torch while the interpreter ends would take the process with it."""
    begun, made, waiting, go_on = [], [], threading.Semaphore(0), threading.Event()

    class Slow(LiveSource):
        def batch(self, rows, epochs):
            begun.append(rows)
            waiting.release()
            assert go_on.wait(PATIENCE)
            found = super().batch(rows, epochs)
            made.append(rows)
            return found

    reading(readers)
    steps = TrainLoader(Slow(rows(24), vocabulary, exact_count, 0), 4, seed=0).steps(0, 1)
    left = []
    consumer = threading.Thread(target=lambda: (next(steps), steps.close(), left.append(len(begun) - len(made))))
    consumer.start()
    assert all(waiting.acquire(timeout=PATIENCE) for _ in range(readers))
    go_on.set()
    consumer.join(PATIENCE)
    assert left == [0] and len(begun) == len(made) >= readers


@pytest.mark.parametrize("readers", [0, 1, 2])
def test_batches_for_a_gpu_are_pinned_by_a_node(source_of, reading, monkeypatch, readers):
    """``PinMemory`` asks for ``pin_memory`` of what is not a tensor; inline, nothing is pinned."""
    monkeypatch.setattr(loading, "PinMemory", lambda node: Mapper(node, lambda batch: batch.pin_memory()))
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: (batch, "pinned"))
    reading(readers)
    for batches in taken(TrainLoader(source_of(8), 4, seed=0, pin=True), 0, 1, 3):
        assert [isinstance(batch, tuple) for batch in batches] == [readers > 0]


NUMBER_OF_THREADS = """
import os, sys, threading, torch
from components.objective.masking import exact_count
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.batches import LiveSource
from pipeline.data.loading import TrainLoader

for readers in "013":
    os.environ["SLOTLOOP_READERS"] = readers
    if not os.fork():  # nothing has computed yet: each is as a process of its own
        break
    assert os.wait()[1] == 0
else:
    sys.exit()
torch.set_num_threads(2)  # and nothing else before the loader
n = torch.arange(24)
response = torch.ones(24, 6, dtype=torch.bool)
split = Split(tokens=n[:, None].expand(24, 6).int(), response=response, group=n, uid=n)
seen, workers = set(), set()

class Noted(LiveSource):
    def batch(self, rows, epochs):
        workers.add(threading.get_ident())
        seen.add((threading.get_ident() == main, torch.get_num_threads()))
        return super().batch(rows, epochs)

main = threading.get_ident()
vocabulary = Vocabulary(size=102, mask_id=100, pad_id=101, sequence=6, rendering="text")
steps = TrainLoader(Noted(split, vocabulary, exact_count, 0), 4, seed=0).steps(0, 1)
while len(workers) < max(1, int(os.environ["SLOTLOOP_READERS"])):  # until each has made a batch
    next(steps)
later = []
thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
thread.start(); thread.join()
steps.close()
info = torch.__config__.parallel_info()
print(torch.get_num_threads(), "at::get_num_threads() : 2" in info, "omp_get_max_threads() : 2" in info, *later, *sorted(seen))
"""


def test_threads_that_read_leave_the_number_that_compute():
    """torchdata's workers set one thread for whoever has not computed yet: the main thread, and threads that begin later."""
    done = subprocess.run([sys.executable, "-c", NUMBER_OF_THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"2 True True 2 ({readers == 0}, 2)" for readers in (0, 1, 3)]


# What goes wrong while reading


class Failing(LiveSource):
    """A source that cannot read one row."""

    def batch(self, rows, epochs):
        if 9 in rows:
            raise ShardError("train-00.tar :: 000002: cut")
        return super().batch(rows, epochs)


@READERS
def test_an_error_of_a_reading_thread_is_raised_where_its_batch_was_due(rows, vocabulary, reading, readers):
    reading(readers)
    batches = in_order(Failing(rows(24), vocabulary, exact_count, 0), 4)
    assert [next(batches)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(ShardError) as caught:
        next(batches)
    assert str(caught.value) == "train-00.tar :: 000002: cut" and type(caught.value) is ShardError


@READERS
def test_an_error_stops_training_with_its_own_type_and_message(rows, vocabulary, reading, readers):
    reading(readers)
    steps = TrainLoader(Failing(rows(24), vocabulary, exact_count, 0), 4, seed=0).steps(0, 2)
    with pytest.raises(ShardError, match=r"^train-00.tar :: 000002: cut$"):
        list(islice(steps, 3))  # an epoch


# Every row once


@pytest.mark.parametrize(("readers", "n", "size"), [(0, 40, 12), (1, 13, 5), (2, 24, 24), (4, 5, 256), (4, 40, 12), (2, 13, 5)])
def test_in_order_every_row_comes_once_with_a_last_smaller_batch(source_of, reading, readers, n, size):
    reading(readers)
    found = list(in_order(source_of(n), size))
    assert [number for number, _ in found] == list(range(-(-n // size)))
    assert ids(batch for _, batch in found) == list(range(n))
    assert all(len(batch) == size for _, batch in found[:-1])


def test_in_order_the_shortest_rows_come_first(rows, vocabulary):
    split = rows(20)
    valid = torch.arange(6) < 3 + torch.arange(20)[:, None] % 4
    split = type(split)(**{**vars(split), "response": split.response & valid, "valid": valid})
    batches = [batch for _, batch in in_order(LiveSource(split, vocabulary, exact_count, 0, buckets=(3, 4, 5)), 5)]
    assert [batch.tokens.shape[1] for batch in batches] == [3, 4, 5, 6]
    assert ids(batches) == sorted(range(20), key=lambda row: (row % 4, row))


@pytest.mark.parametrize(("readers", "world"), [(0, 3), (1, 2), (1, 7), (3, 4)])
def test_in_order_processes_share_the_batches(source_of, as_process, reading, readers, world):
    """Six batches: the seventh process has none."""
    source = source_of(29)
    alone = dict(in_order(source, 5))
    reading(readers)
    shared = {}
    for rank in range(world):
        as_process(rank, world)
        mine = dict(in_order(source, 5))
        assert abs(len(mine) - 6 / world) < 1 and not shared.keys() & mine
        shared |= mine
    assert shared.keys() == alone.keys() and all(same(shared[number], alone[number]) for number in alone)


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "", "100"])
def test_a_number_of_threads_that_is_none_is_refused(source_of, reading, text):
    reading(text)
    with pytest.raises(ConfigError, match=rf"SLOTLOOP_READERS is '{text}'; expected how many threads read ahead, 0 to 99"):
        next(in_order(source_of(8), 4))
