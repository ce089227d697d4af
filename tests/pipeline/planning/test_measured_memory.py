"""The memory that a plan tells beside what training really takes, in a process of its own, of models of some megabytes."""

import contextlib
import json

import pytest

from pipeline.command_line import SECTIONS
from pipeline.planning import plan as planning
from pipeline.settings import config, params
from tests.conftest import ROOT, run_stages, workspace
from tests.support.peak_memory import peak_memories, peak_memory

SIZES = {
    "DIM": 256, "LAYERS": 4, "BACKBONE_BATCH": 256, "BATCH": 128, "VALIDATION_BATCH": 32, "BACKBONE_STEPS": 3, "WARMUP_STEPS": 3,
    "JOINT_STEPS": 3,
}  # fmt: skip
READY = """
import contextlib, io, os
from stages.__main__ import main
os.environ.update(DVC_STAGE="test", SLOTLOOP_TRACKING="off")
os.chdir({place!r})

def quietly(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words]) == 0

quietly(*{words!r})  # for what is loaded when it is first used
"""

BY_ITSELF = """
job = {{name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}}
quietly(*{words!r}, "--out", "warm-" + job["RANK"], f"BACKBONE_STEPS={{1 + int(job['RANK'])}}")
os.environ.update(job)
"""  # in a job of one process, with settings that are not the other's


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace in which everything is ready that training reads."""
    place = workspace(tmp_path_factory.mktemp("measured") / "of", "smoke")
    (place / "params.yaml").write_text(json.dumps({"preset": "smoke", "common": {"bindings": SIZES}}))
    run_stages(place, ("prepare", "backbone", "extract", "warmup", "joint"))
    return place


@pytest.fixture(autouse=True)
def _given_back(monkeypatch):
    """The allocator hands back what it was given back, so that what is resident is what is alive."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")


def planned(place, stage, *settings, processes=1):
    """Bytes that a process is said to take of a stage with more settings."""
    with contextlib.chdir(place):
        read = params.read(place / "params.yaml", SECTIONS)
        texts = {**config.resolve_all(SECTIONS, read, root=ROOT), stage: config.resolve(stage, read, settings, ROOT).text}
        return planning.memory_of([stage], texts, processes)[stage]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "smaller", "execution"),
    [
        ("backbone", ["BACKBONE_BATCH=2", "BACKBONE_STEPS=1"], "eager"),
        ("backbone", ["BACKBONE_BATCH=2", "BACKBONE_STEPS=1"], "checkpointed"),
        ("warmup", ["BATCH=2", "WARMUP_STEPS=1"], "eager"),
        ("joint", ["BATCH=2", "JOINT_STEPS=1"], "eager"),
        ("controls", ["BACKBONE_BATCH=2", "BATCH=2"], "eager"),
    ],
)
def test_training_takes_the_memory_that_is_planned(place, stage, smaller, execution):
    run_as = f"loop.fit.execution=@execution.{execution}"
    told = planned(place, stage, run_as)
    taken, _ = peak_memory(READY.format(place=str(place), words=[stage, *smaller]), f"quietly({stage!r}, {run_as!r})")
    assert told / 1.3 < taken < told * 1.3 and told > 30e6


@pytest.mark.slow
def test_processes_that_share_layers_out_take_the_memory_that_is_planned(place, tmp_path):
    """The first one also puts the model together, which on a CPU takes of the same memory."""
    settings = ["loop.fit.sharding=@sharding.fully_sharded", "loop.fit.accumulation=2", "BACKBONE_BATCH=4", "DIM=512"]
    told = planned(place, "backbone", *settings, processes=2)
    ready = READY.replace("quietly(*{words!r})", BY_ITSELF).format(place=str(place), words=["backbone"])
    for taken in peak_memories(ready, f"quietly('backbone', *{settings!r})", 2, tmp_path):
        assert told / 1.3 < taken < told * 1.3 and told > 30e6
