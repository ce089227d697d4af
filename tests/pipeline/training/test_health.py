"""What a training run says of itself while it goes on: each symptom once, and how long it waits for batches."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.training import health
from pipeline.training.health import Health
from pipeline.training.train_state import TrainState
from tests.support.made_runs import HEALTHY, write_run


def watched(folder, clip=0.0):
    runtime = SimpleNamespace(device=torch.device("cpu"))
    return Health(SimpleNamespace(name="warmup", out=Path(folder), runtime=runtime), clip)


def state(validation=HEALTHY):
    return TrainState(steps=200, validation=validation)


def test_each_symptom_is_said_once(tmp_path):
    write_run(tmp_path, grad_norm=3.0)
    run = watched(tmp_path, clip=1.0)
    assert run.news(state(), 200) == "always clipped (100% of the last 100 steps; median norm 3, loop.fit.clip 1)"
    assert run.news(state(), 200) == ""
    write_run(tmp_path, grad_norm=3.0, confidence=0.01)
    assert run.news(state(), 200).startswith("confidence uniform (mean confidence ends at 0.010")
    assert run.news(state(), 200) == ""


@pytest.mark.parametrize(("planned", "said"), [(200, True), (400, True), (2000, False)])
def test_what_a_run_has_yet_to_come_to_is_not_said_early(tmp_path, planned, said):
    write_run(tmp_path, confidence=0.01)
    assert bool(watched(tmp_path).news(state(), planned)) == said


def test_a_damaged_file_stops_no_training(tmp_path):
    write_run(tmp_path)
    (tmp_path / "curves.csv").write_text("step,loss\n0,1,2\n")
    assert watched(tmp_path).news(state(), 200) == ""


def test_a_run_that_is_well_says_nothing(tmp_path):
    write_run(tmp_path)
    assert watched(tmp_path, clip=1.0).news(state(), 200) == ""


@pytest.mark.parametrize(("wait", "said"), [(0.5, True), (0.25, True), (0.1, False), (0.0, False)])
def test_waiting_for_batches_is_a_share_of_the_time_since_the_first(tmp_path, monkeypatch, wait, said):
    """A batch takes ``wait`` seconds to come, and the rest of a second to be computed with; the first, which takes ten, is no
    fault of the loader.
    """
    now = [0.0]
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def batches():
        now[0] += 10.0
        yield 0
        while True:
            now[0] += wait
            yield 1

    write_run(tmp_path)
    run, source = watched(tmp_path), batches()
    for number in range(40):
        assert run.waited(source) == (number > 0)
        now[0] += 1.0 - wait
    news = run.news(state(), 200)
    shares = [int(share) for share in re.findall(r"loader starves the device \((\d+)%", news)]
    assert shares == pytest.approx([100 * wait] * said, abs=1)
