"""Memory that is used again: never while anything can see it, and always when nothing can."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.data.buffers import SPARE, Buffers

VIEWS = {
    "itself": lambda taken: taken,
    "slice": lambda taken: taken[5:9],
    "type": lambda taken: taken[:64].view(torch.float32).unflatten(0, (2, 2, 4)),
    "one": lambda taken: taken[7],
    "detached": lambda taken: taken.detach().t(),
    "numpy": lambda taken: taken.numpy()[3:],
    "memory": lambda taken: memoryview(taken.numpy().data)[:10],
    "of numpy": lambda taken: torch.from_numpy(taken.numpy()),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_buffer_is_not_handed_out_while_a_view_of_it_lives(view):
    buffers = Buffers()
    taken = buffers.take(100)
    place = taken.data_ptr()
    seen = view(taken)
    del taken
    other = buffers.take(100)
    assert other.data_ptr() != place
    del seen
    assert buffers.take(100).data_ptr() == place


def test_what_is_taken_together_shares_nothing():
    buffers = Buffers()
    taken = [buffers.take(50) for _ in range(3 * SPARE)]
    for number, one in enumerate(taken):
        one.fill_(number)
    assert all((one == number).all() for number, one in enumerate(taken))


def test_the_same_memory_serves_batch_after_batch():
    buffers, places = Buffers(), set()
    for _ in range(20):
        taken = buffers.take(1000)
        places.add(taken.data_ptr())
        del taken
    assert len(places) == 1


@pytest.mark.parametrize(("first", "second", "again"), [(100, 40, True), (100, 100, True), (100, 101, False)])
def test_a_buffer_is_used_again_if_it_is_large_enough(first, second, again):
    buffers = Buffers()
    place = buffers.take(first).data_ptr()
    keeps_the_allocator_away = np.empty(first, np.uint8)
    taken = buffers.take(second)
    assert taken.shape == (second,) and taken.dtype == torch.uint8
    assert (taken.data_ptr() == place) == again
    del keeps_the_allocator_away


def test_after_many_at_once_only_some_are_kept():
    buffers = Buffers()
    taken = [buffers.take(50) for _ in range(4 * SPARE)]
    places = {one.data_ptr() for one in taken}
    last = {one.data_ptr() for one in taken[-SPARE:]}
    while taken:
        del taken[0]
    again = [buffers.take(50) for _ in range(SPARE)]
    assert {one.data_ptr() for one in again} == last < places


@pytest.mark.parametrize("held", [1, 3])
def test_threads_never_see_each_others_numbers(held):
    buffers, wrong = Buffers(), []
    start = threading.Barrier(4)

    def work(name):
        start.wait()
        kept = []
        for step in range(300):
            taken = buffers.take(256 + step % 3)
            taken.fill_(10 * name + step % 10)
            kept = (
                [*kept[-held + 1 :], (taken[:128], 10 * name + step % 10)] if held > 1 else [(taken[:128], 10 * name + step % 10)]
            )
            wrong.extend(step for view, number in kept if not bool((view == number).all()))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not wrong
