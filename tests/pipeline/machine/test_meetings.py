"""Who has lost the others names those that did not come, also where the one that has the store does not answer."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from pipeline.machine import meetings
from pipeline.machine.meetings import Meetings
from tests.support.dvc import wait_until


@pytest.fixture
def store():
    return dist.HashStore()


def waited(one, store, rank):
    """Let a process wait until the others can read that it does."""
    before = store.get(str(rank))
    with one.waiting():
        wait_until(lambda: store.get(str(rank)) != before, "the count is written")


def lost(one):
    """Whom a process misses that has waited for the others in vain."""
    with one.waiting():
        return one.absent()


def test_those_are_named_that_have_come_less_often(store):
    first, second, third = (Meetings(store, rank, 3) for rank in range(3))
    waited(first, store, 0)
    waited(third, store, 2)
    assert first.absent() == third.absent() == [1]
    assert lost(second) == []  # which comes when the others have gone
    for one in (first, second, third):
        one.end()


def test_where_nobody_counts_those_are_named_that_do_not_say_that_they_have_lost_the_others(store):
    """Those that do say so at once, or when the connection that they wait at is closed."""
    processes = [Meetings(store, rank, 4) for rank in range(4)]
    with ThreadPoolExecutor() as pool:
        missed = [pool.submit(lost, processes[0]), pool.submit(lost, processes[3])]
        time.sleep(0.5)
        assert not any(future.done() for future in missed)
        missed.append(pool.submit(lost, processes[1]))
        assert [future.result() for future in missed] == [[2]] * 3
    processes[2].end()


def test_all_are_named_that_say_nothing_for_long(store, monkeypatch):
    monkeypatch.setattr(meetings, "ANSWER", 0.5)
    processes = [Meetings(store, rank, 4) for rank in range(4)]
    waited(processes[1], store, 1)
    assert lost(processes[3]) == [0, 2]
    for one in processes:
        one.end()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_has_lost_the_other_whatever_the_store_says(rank):
    began = time.monotonic()
    assert lost(Meetings(Silent(), rank, 2)) == [1 - rank]
    assert time.monotonic() < began + 5


def test_a_short_wait_is_not_written(store):
    one = Meetings(store, 0, 2)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        with one.waiting():
            time.sleep(0.01)
    assert store.get("0") == b"0"
    one.end()


class Silent:
    """A store that takes what is written and never answers."""

    def set(self, key, value):
        pass

    def multi_get(self, keys):
        time.sleep(1000)


@pytest.mark.parametrize("owner", [0, 2])
def test_a_store_that_does_not_answer_is_the_process_that_has_it(monkeypatch, owner):
    monkeypatch.setattr(meetings, "ANSWER", 0.2)
    one = Meetings(Silent(), 1, 3, owner)
    assert one.absent() == [owner]
    one.end()


def test_a_store_that_has_gone_names_nobody(store):
    one = Meetings(store, 1, 3)
    store.set_timeout(timedelta(milliseconds=10))  # of the others no count is there: as where the store breaks
    assert one.absent() == []
    one.end()
