"""The memory that a plan tells beside what training really takes, in a process of its own, of models of some megabytes."""

import contextlib
import json

import pytest

from pipeline.command_line import SECTIONS
from pipeline.planning import plan as planning
from pipeline.settings import config, params
from tests.conftest import ROOT, run_stages, workspace
from tests.support.peak_memory import peak_memory

SIZES = {
    "DIM": 256, "LAYERS": 4, "BACKBONE_BATCH": 256, "BATCH": 128, "VALIDATION_BATCH": 32, "BACKBONE_STEPS": 3, "WARMUP_STEPS": 3,
}  # fmt: skip
READY = """
import contextlib, io, os
from stages.__main__ import main
os.environ.update(DVC_STAGE="test", SLOTLOOP_TRACKING="off")
os.chdir({place!r})

def quietly(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words]) == 0

quietly({stage!r}, {batch!r}, {steps!r})  # for what is loaded when it is first used
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace in which everything is ready that warmup reads."""
    place = workspace(tmp_path_factory.mktemp("measured") / "of", "smoke")
    (place / "params.yaml").write_text(json.dumps({"preset": "smoke", "common": {"bindings": SIZES}}))
    run_stages(place, ("prepare", "backbone", "extract"))
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "batch", "steps", "execution"),
    [
        ("backbone", "BACKBONE_BATCH=2", "BACKBONE_STEPS=1", "eager"),
        ("backbone", "BACKBONE_BATCH=2", "BACKBONE_STEPS=1", "checkpointed"),
        ("warmup", "BATCH=2", "WARMUP_STEPS=1", "eager"),
    ],
)
def test_training_takes_the_memory_that_is_planned(place, monkeypatch, stage, batch, steps, execution):
    """The allocator hands back what it was given back, so that what is resident is what is alive."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    run_as = f"loop.fit.execution=@execution.{execution}"
    with contextlib.chdir(place):
        read = params.read(place / "params.yaml", SECTIONS)
        texts = {**config.resolve_all(SECTIONS, read, root=ROOT), stage: config.resolve(stage, read, [run_as], ROOT).text}
        planned = next(cost.memory for cost in planning.plan(texts).costs if cost.stage == stage)
    taken, _ = peak_memory(READY.format(place=str(place), stage=stage, batch=batch, steps=steps), f"quietly({stage!r}, {run_as!r})")
    assert planned / 1.3 < taken < planned * 1.3 and planned > 30e6
