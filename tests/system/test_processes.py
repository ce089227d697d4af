"""Several processes for one stage: the bytes of one process. `make test-slow`."""

import hashlib
import shutil

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.objective.losses import masked_cross_entropy
from components.objective.supervision import linear_decay
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from tests.support.dvc import content
from tests.support.jobs import PYTHON, TORCHRUN, alone, completed, ended, forked, start

MICRO = ("ACCUMULATION=4", "BATCH=8")  # what several processes can share
OVERRIDES = {
    "backbone": ("ACCUMULATION=4", "BACKBONE_BATCH=8"),
    "extract": ("extract.run.shard_bytes=100_000", "EXTRACT_BATCH=40"),
    "warmup": MICRO,
    "joint": MICRO,
    "finetune": (*MICRO, "finetune.run.steps=3"),
    "controls": MICRO,
    "evaluate": ("EVALUATION_BATCH=7",),
}
OUT = {"backbone": "data/backbone", "extract": "data/shards"}
WAYS = ((TORCHRUN, "1"), (PYTHON, "2"), (PYTHON, "4"))  # command, SLOTLOOP_PROCESSES
FEWER = ("backbone", "finetune", "controls")  # not by torchrun, to save seconds: what starts processes is no matter of the stage


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
    for command, processes in WAYS[stage in FEWER :]:
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
