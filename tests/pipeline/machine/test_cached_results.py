"""Finished pieces: made once, kept through a kill, made again when damaged, gone with the stage."""

import pytest
import torch

from pipeline.machine import snapshots
from pipeline.machine.cached_results import cached_result


class Making:
    """Counts how often it was asked; each time the piece is another one."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"x": torch.full((2, 3), self.times).T}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path))
    return tmp_path


def killed(make, *names):
    """A stage that makes pieces and does not come to its end; what it had."""
    try:
        with snapshots.workspace("evaluate", "i" * 64):
            found = [int(cached_result(name, make)["x"][0, 0]) for name in names]
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return found


def test_a_piece_is_made_once(place):
    make = Making()
    assert killed(make, "a/0", "a/1", "a/10", "b/0") == [1, 2, 3, 4]
    assert killed(make, "a/10", "b/0", "a/1", "a/0", "a/2") == [3, 4, 2, 1, 5]


@pytest.mark.parametrize("at", [0, 40, -1, None])
def test_a_damaged_or_cut_piece_is_made_again(place, at):
    make = Making()
    killed(make, "a")
    [file] = place.rglob("pieces/*")
    content = bytearray(file.read_bytes())
    if at is not None:
        content[at] ^= 1
    file.write_bytes(content if at is not None else content[:20])
    assert killed(make, "a") == [2] and killed(make, "a") == [2]


def test_a_name_is_no_path(place):
    make = Making()
    assert killed(make, "../../up", "a/../b", "/root", "") == [1, 2, 3, 4] == killed(make, "../../up", "a/../b", "/root", "")
    assert len(list(place.rglob("pieces/*"))) == 4


def test_nothing_is_left_behind(place):
    with snapshots.workspace("evaluate", "i" * 64):
        cached_result("a", Making())
    assert not place.exists()


def test_without_a_stage_nothing_is_kept():
    make = Making()
    assert [int(cached_result("a", make)["x"][0, 0]) for _ in range(2)] == [1, 2]
