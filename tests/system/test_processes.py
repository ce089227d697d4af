"""Several processes for one stage: the bytes of one process, whatever happens to some of them on the way. `make test-slow`."""

import hashlib
import shutil
import signal
import sys
from functools import partial

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.objective.losses import masked_cross_entropy
from components.objective.supervision import linear_decay
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from tests.support.dvc import PATIENCE, content, snapshot, wait_until
from tests.support.jobs import PYTHON, TORCHRUN, alone, completed, forked, member, nothing_left, running, standing_still, start

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a signal of Linux")
STEPS = 30
MICRO = ("ACCUMULATION=4", "BATCH=8")  # what several processes can share
TRAINING = (*MICRO, f"loop.fit.steps={STEPS}", "loop.fit.save_every=1", "loop.fit.validate_every=7", "loop.fit.log_every=5")
OVERRIDES = {
    "extract": ("extract.run.shard_bytes=100_000", "EXTRACT_BATCH=40"),
    "warmup": MICRO,
    "joint": MICRO,
    "evaluate": ("EVALUATION_BATCH=7",),
}
OUT = {"extract": "data/shards"}
WAYS = ((TORCHRUN, "1"), (PYTHON, "2"), (PYTHON, "4"))  # command, SLOTLOOP_PROCESSES


STAGE = """
import os
from stages.__main__ import main

os.environ["DVC_STAGE"] = "test"
raise SystemExit(main({}))
"""


def out_of(stage):
    return OUT.get(stage, f"outputs/{stage}")


def test_two_processes_write_the_bytes_of_one(copy_of):
    short = (*MICRO, "loop.fit.steps=3")
    expected = alone(copy_of, "warmup", *short)
    assert "curves.csv" in expected and "model.safetensors" in expected
    shutil.rmtree(copy_of / "outputs/warmup")
    assert [(process.returncode, process.stderr) for process in forked(STAGE.format(["warmup", *short]), 2, copy_of)] == [
        (0, "")
    ] * 2
    assert content(copy_of / "outputs/warmup") == expected
    assert not (copy_of / ".scratch").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", OVERRIDES)
def test_any_number_of_processes_writes_the_bytes_of_one(copy_of, stage):
    expected = alone(copy_of, stage, *OVERRIDES[stage], out=out_of(stage))
    assert {"config.gin", "config.yaml"} <= expected.keys()
    for command, processes in WAYS:
        how = {"command": command, "SLOTLOOP_PROCESSES": processes}
        assert completed(copy_of, stage, *OVERRIDES[stage], out=out_of(stage), **how) == expected


@pytest.mark.slow
def test_shards_have_the_same_hashes_from_one_two_and_three_processes(copy_of):
    def hashes(processes):
        written = completed(copy_of, "extract", *OVERRIDES["extract"], out=out_of("extract"), SLOTLOOP_PROCESSES=processes)
        return {name: hashlib.sha256(data).hexdigest() for name, data in written.items() if name.endswith(".tar")}

    expected = hashes("1")
    assert len(expected) >= 6  # more than one for each
    assert hashes("2") == hashes("3") == expected


@pytest.fixture
def job(copy_of):
    """A workspace of which nothing runs any longer at the end."""
    with nothing_left(copy_of) as folder:
        yield folder


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> dict[str, bytes]:
    """What warmup writes with ``TRAINING``."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    shutil.copytree(finished, folder, symlinks=True)
    return alone(folder, "warmup", *TRAINING)


def midway(folder, act, processes="2"):
    """A warmup of several processes; ``act`` is done to it a few steps further on than where it began, while all stand still."""
    for _ in range(20):
        target = snapshot(folder, "warmup") + 3
        process = start(folder, "warmup", *TRAINING, SLOTLOOP_PROCESSES=processes)
        moment = partial(lambda step, job: snapshot(folder, "warmup") >= step or job.poll() is not None, target, process)
        wait_until(moment, "warmup trains", pause=0.01)
        with standing_still(running(folder)):
            if target <= snapshot(folder, "warmup") <= STEPS - 5:  # so many are left, to end before they are done
                act(process)
                return process
        assert ended(process) == (0, "")  # this test was too slow for it: from the beginning
    pytest.fail("the stage always ended before anything was done to it")


def kill(folder, *ranks):
    for process in [member(folder, rank) for rank in ranks]:
        process.kill()


def ended(process):
    """Status and errors of a job that has ended by itself, with all that belonged to it."""
    _, error = process.communicate(timeout=PATIENCE)
    return process.returncode, error


def nothing_runs(folder):
    wait_until(lambda: not running(folder), "all processes end")


def keys(folder):
    return [path.name for path in (folder / ".scratch/warmup").iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "4"])
def test_what_two_processes_began_any_number_ends(job, uninterrupted, processes):
    process = midway(job, lambda _: kill(job, 0, 1))
    assert ended(process)[0] == 1
    nothing_runs(job)
    [key], reached = keys(job), snapshot(job, "warmup")
    if processes == "4":
        process = midway(job, lambda launcher: launcher.terminate(), processes)
        assert ended(process)[0] == 143
        assert keys(job) == [key] and snapshot(job, "warmup") > reached
    assert completed(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES=processes) == uninterrupted
    assert not (job / ".scratch").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_with_its_name(job, uninterrupted, rank):
    process = midway(job, lambda _: kill(job, rank))
    told = f"error: process {rank} of 2 was ended by SIGKILL, the others were stopped; run it again to continue\n"
    assert ended(process) == (1, told)
    assert not running(job)
    assert completed(job, "warmup", *TRAINING, SLOTLOOP_PROCESSES="2") == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number", "status"),
    [
        ("launcher", signal.SIGTERM, 143),
        ("0", signal.SIGTERM, 143),
        ("1", signal.SIGTERM, 143),
        ("launcher", signal.SIGINT, 130),
    ],
)
def test_a_job_that_is_asked_to_end_saves_its_last_step(job, uninterrupted, whom, number, status):
    process = midway(job, lambda launcher: (launcher if whom == "launcher" else member(job, int(whom))).send_signal(number))
    code, error = ended(process)
    assert code == status and not running(job)
    step = snapshot(job, "warmup")
    if number == signal.SIGTERM:
        assert error == f"error: warmup: SIGTERM after step {step} of {STEPS}; run it again to continue from there\n"
    else:
        assert error == "interrupted\n"
    assert alone(job, "warmup", *TRAINING) == uninterrupted


@linux
@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(job, uninterrupted):
    process = midway(job, lambda launcher: launcher.kill())
    ended(process)
    nothing_runs(job)
    assert snapshot(job, "warmup") < STEPS, "the job went on to its end"
    assert alone(job, "warmup", *TRAINING) == uninterrupted


@pytest.mark.slow
def test_microbatches_that_cannot_be_shared_are_one_error(copy_of):
    process = start(copy_of, "warmup", *MICRO, SLOTLOOP_PROCESSES="3")
    code, error = ended(process)
    assert code == 2 and len(error.splitlines()) == 1
    assert error.startswith(
        "error: 3 processes cannot share 4 microbatches a step equally; set loop.fit.accumulation to a multiple"
    )


GRADIENT = """
import torch
from pipeline.machine.distributed import joined, rank
from pipeline.training.gradients import accumulate
from pipeline.training.sharding import trainable
from pipeline.machine.runtime import Runtime
from tests.system.test_processes import SIZES, a_model, microbatches
from components.objective.objective import Objective

with joined():
    model, objective, runtime = a_model(), Objective(3), Runtime(threads=1)
    runtime.enter_process()
    mine = microbatches()[2 * rank() : 2 * rank() + 2]
    rest = {"seed": 0, "step": 0, "progress": 1.0, "statistics": False}
    values = accumulate(model, objective, mine, runtime, sequences=sum(SIZES), **rest)
    torch.save({"loss": values["loss"], "gradients": [p.grad for p in trainable(model, objective).values()]}, f"found-{rank()}")
"""
SIZES = (4, 1, 3, 2)  # sequences of each microbatch; the masked positions differ too


def a_model() -> RefinedLM:
    """A refiner that is awake, over a trainable tail."""
    g = torch.Generator().manual_seed(0)
    backbone = TinyLM(vocab=11, seq=6, dim=16, layers=2, heads=2)
    backbone.init_weights(g)
    refiner = SlotRefiner(16, heads=2, steps=3)
    refiner.init_weights(1.5, g)
    model = RefinedLM(backbone, refiner)
    with torch.no_grad():
        model.refiner.delta_out.weight.normal_(generator=g)
    return model


def microbatches() -> list[Batch]:
    """The step's microbatches."""
    g = torch.Generator().manual_seed(1)
    found = []
    for size in SIZES:
        tokens = torch.randint(11, (size, 6), generator=g)
        masked = torch.rand(size, 6, generator=g) < 0.5
        weights = torch.rand(size, 6, generator=g) * masked
        found.append(Batch(tokens.where(~masked, torch.tensor(10)), tokens, masked, weights, None))
    return found


def test_the_gradient_of_two_processes_is_that_of_one_graph_over_the_whole_step(tmp_path):
    model = a_model().train()
    loss = torch.zeros(())
    for batch in microbatches():
        states = list(model.steps(batch))
        for weight, state in zip(linear_decay(len(states)), states, strict=True):
            loss = loss + weight * (masked_cross_entropy(model, state.hidden, batch, compute=True)[0] / sum(SIZES))
            if state.penalty is not None:
                loss = loss + weight * state.penalty * (len(batch) / sum(SIZES))
    loss.backward()
    expected = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(states) == 3

    done = forked(GRADIENT, 2, tmp_path)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    found = [torch.load(tmp_path / f"found-{rank}", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(found[0]["loss"], loss.detach(), rtol=1e-6, atol=0)
    assert len(found[0]["gradients"]) == len(expected)
    for mine, other, reference in zip(found[0]["gradients"], found[1]["gradients"], expected, strict=True):
        assert torch.equal(mine, other)
        reference = torch.zeros_like(mine) if reference is None else reference
        assert (mine - reference).norm() <= 2e-6 * reference.norm()  # of sums in float32, in another order
    assert sum(g is not None and g.norm() > 0 for g in expected) > len(expected) // 2
