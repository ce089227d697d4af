"""Who waits in vain names those that did not come, also where the one that has the store does not answer."""

import time
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


def test_those_are_named_that_have_come_less_often(store):
    first, second, third = (Meetings(store, rank, 3) for rank in range(3))
    waited(first, store, 0)
    assert first.absent() == [1, 2]
    waited(third, store, 2)
    assert first.absent() == [1]
    waited(second, store, 1)
    assert first.absent() == second.absent() == third.absent() == []
    with second.waiting():
        assert second.absent() == [0, 2]
    for one in (first, second, third):
        one.end()


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

    def get(self, key):
        time.sleep(1000)


def test_a_store_that_does_not_answer_is_the_first_process(monkeypatch):
    monkeypatch.setattr(meetings, "ANSWER", 0.2)
    one = Meetings(Silent(), 1, 3)
    assert one.absent() == [0]
    one.end()


def test_a_store_that_has_gone_names_nobody(store):
    one = Meetings(store, 1, 3)
    store.set_timeout(timedelta(milliseconds=10))  # of the others no count is there: as where the store breaks
    assert one.absent() == []
    one.end()
