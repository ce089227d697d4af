"""Who waits for another machine, and when that is no longer worth it."""

import os
import signal
import threading

from pipeline.data import giving_up
from pipeline.data.giving_up import abandoned, given_up
from pipeline.machine.process import termination_noted


def test_only_the_threads_that_are_named_give_up_and_only_within_the_block():
    said = []
    with abandoned({threading.get_ident()}):
        other = threading.Thread(target=lambda: said.append(given_up()))
        other.start()
        other.join()
        assert given_up() and said == [False]
    assert not given_up()


def test_a_block_within_another_ends_without_it():
    me = threading.get_ident()
    with abandoned({me}):
        with abandoned({me}):
            assert given_up()
        assert given_up()
    assert not given_up()


def test_asked_to_end_every_thread_has_the_grace_and_no_more(monkeypatch):
    with termination_noted():
        os.kill(os.getpid(), signal.SIGTERM)
        assert not given_up()
        monkeypatch.setattr(giving_up, "GRACE", 0.0)
        assert given_up()
    assert not given_up()
