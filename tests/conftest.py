"""Fixtures: a tiny prepared corpus, backbone, shards and refiner on disk, made once per session by the stages themselves."""

import gc
import json
import math
import os
import shutil
import signal
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from pipeline import progress
from tests.support.once import made_once, shared_folder

gc.disable()  # until everything is imported: to search the growing heap again and again is a fifth of the collection's time
os.environ["SLOTLOOP_TRACKING"] = "off"  # tests of tracking turn it on
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would children
torch.set_num_threads(1)  # on tensors as small as those of the tests more threads only wait for each other
settings.register_profile(  # the same examples here as where CI is set, and whenever nothing has changed
    "any machine", deadline=None, max_examples=50, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
ROOT = Path(__file__).resolve().parent.parent
SUMS = [(f"What is {i} + {i + 1}?", f"{i} + {i + 1} = {2 * i + 1}\n#### {2 * i + 1}") for i in range(60)]
RAW = os.environ.get("SLOTLOOP_RAW")  # where the machine has real corpora; only tests that ask for them read there
TRAINING = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report")


FIRST = (  # what takes long is begun first, so that the workers end at about the same time
    "tests/system/test_docs.py",  # the three longest slow tests; what comes next waits behind one of them, so it is short
    "tests/system/test_damages.py",
    "tests/pipeline/test_ablation.py",
    "tests/system/test_examples.py",
    "tests/pipeline/planning/test_plan.py",
    "tests/stages/test_quantised.py",
    "tests/system/test_random_settings.py",
    "tests/system/test_kill.py",
    "tests/system/test_bench.py",
    "tests/system/test_queue.py",
    "tests/pipeline/training/test_execution.py",
    "tests/stages/test_pretrained.py",
    "tests/pipeline/training/test_half_precision.py",
    "tests/system/",
    "tests/stages/",
)


OF_THE_CALLER = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def pytest_configure():
    """Whoever runs the tests, in a narrow window or with settings of their own, runs the same ones."""
    for name in [name for name in os.environ if name in OF_THE_CALLER or name.startswith(("SLOTLOOP_", "DVC_"))]:
        if name not in ("SLOTLOOP_RAW", "SLOTLOOP_TRACKING"):
            del os.environ[name]
    os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")  # where their servers are


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: [not item.nodeid.startswith(path) for path in FIRST])


def pytest_collection_finish():
    gc.freeze()  # modules stay
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file go to one worker, which builds the file's fixtures once; files in the order of collection."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # it would begin with the files of the most tests
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_collected_by_this_thread():
    """An abandoned endless loader that is collected within its own reading thread cannot join it."""
    gc.freeze()
    gc.disable()
    yield
    gc.collect()
    gc.enable()
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _switches_of_the_process():
    """Stages that run in this process turn torch's switches; the next test finds them as the first one did."""
    yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Paths in gin files are relative to the repository; tests that write change to a folder of their own."""
    monkeypatch.chdir(ROOT)


def workspace(folder: Path, preset: str) -> Path:
    """A folder in which stages can run: gin/ and a params.yaml of the given preset."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gin").symlink_to(ROOT / "gin")
    (folder / "params.yaml").write_text(f"preset: {preset}\ncommon: {{}}\n")
    return folder


def run_stages(folder: Path, stages: tuple[str, ...], *overrides: str) -> None:
    """Run stages in a workspace, in this process, writing where DVC would."""
    from stages.__main__ import main

    before, under_dvc = Path.cwd(), os.environ.get("DVC_STAGE")
    os.chdir(folder)
    os.environ["DVC_STAGE"] = "test"
    try:
        for stage in stages:
            assert main([stage, *overrides]) == 0
    finally:
        os.chdir(before)
        os.environ.pop("DVC_STAGE")
        if under_dvc is not None:
            os.environ["DVC_STAGE"] = under_dvc
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _raw_data_of_their_own():
    """Raw data that a test writes is what its stages read, whatever the machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLOTLOOP_RAW", raising=False)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The smoke preset, run through every stage. Read only: copy what you change (`copy_of`)."""
    return made_once(shared_folder(tmp_path_factory) / "finished", lambda to: run_stages(workspace(to, "smoke"), TRAINING))


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """The smoke preset of text, on sums, run through every stage. Read only."""
    return made_once(shared_folder(tmp_path_factory) / "text", run_text)


def run_text(folder: Path) -> None:
    """Run every stage of the smoke preset of text on sums."""
    workspace(folder, "gsm8k_smoke")
    raw = folder / "raw/gsm8k"
    raw.mkdir(parents=True)
    for name, pairs in (("train", SUMS), ("test", SUMS[:12])):
        (raw / f"{name}.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
    bindings = {
        "MEASURES": {"mask_30": ["test", 0.3]}, "DECODES": {}, "HALTS": {}, "THREADS": 1, "EVALUATION_BATCH": 3,
        "jsonl.QuestionAnswers": {"sequence": 48, "vocabulary": 300},
    }  # fmt: skip
    (folder / "params.yaml").write_text(json.dumps({"preset": "gsm8k_smoke", "common": {"bindings": bindings}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
        run_stages(folder, TRAINING)


@pytest.fixture(autouse=True)
def _no_line_by_time(monkeypatch):
    """What is printed does not depend on how fast the machine is."""
    monkeypatch.setattr(progress, "FIRST", math.inf)


@pytest.fixture
def racing_clock(monkeypatch, _no_line_by_time):
    """Each look at the clock of progress is 100 s after the last one, and only work itself looks: every unit prints a line."""
    looks = count()
    monkeypatch.setattr(progress, "FIRST", 20.0)
    monkeypatch.setattr(progress, "clock", lambda: 100.0 * next(looks))
    monkeypatch.setattr(progress, "PULSE", 1e6)


@pytest.fixture
def copy_of(finished, tmp_path) -> Path:
    """A workspace of one's own with everything that the smoke run left."""
    folder = workspace(tmp_path / "copy", "smoke")
    for part in ("data", "outputs"):
        shutil.copytree(finished / part, folder / part)
    return folder
