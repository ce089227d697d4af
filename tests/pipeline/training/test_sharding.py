"""Shared out over processes, a training is what it is in one, up to rounding; its files are whole and go on in any number."""

import json
import os
import resource
import shutil
import signal
import time
from functools import partial
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.objective.objective import Objective
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except
from components.training.optim import adamw, muon
from pipeline.errors import ConfigError
from pipeline.machine import snapshot_writing, snapshots
from pipeline.machine.distributed import rank, world
from pipeline.machine.runtime import Runtime
from pipeline.tensor_files import write_tensors
from pipeline.training import execution, step_operations
from pipeline.training.loop import fit
from pipeline.training.sharding import fully_sharded, replicated
from pipeline.training.step_operations import STEPS as COUNTED
from pipeline.training.train_state import TrainRun
from tests.support.jobs import forked
from tests.support.llama import llama

MICRO = 12  # microbatches of a step: 1, 2, 3 and 4 processes can share them
MORE = (("refined", 3), ("backbone", 3), ("half", 2), ("library", 2))
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def backbone(dtype=torch.float32):
    lm = TinyLM(vocab=11, seq=6, dim=16, layers=2, heads=2)  # 16 rows make no three even parts
    lm.init_weights(torch.Generator().manual_seed(0))
    return lm.to(dtype)


def refined():
    """A refiner that is awake, over a backbone whose last layer is trained with it."""
    generator = torch.Generator().manual_seed(1)
    refiner = SlotRefiner(16, heads=2, steps=3)
    refiner.init_weights(1.5, generator)
    model = RefinedLM(backbone(), refiner)
    with torch.no_grad():
        model.refiner.delta_out.weight.normal_(generator=generator)
    freeze_except(model, ["refiner", "backbone.blocks.1"])
    return model


def library():
    """Somebody else's transformer in half precision, its layers trained and nothing else."""
    made = llama(16, 2, torch.bfloat16, intermediate_size=24, head_dim=8)
    freeze_except(made, ["model.model.layers.*"])
    return made


MODELS = {"backbone": backbone, "refined": refined, "half": partial(backbone, torch.bfloat16), "library": library}


class Shared:
    """The microbatches of each step, those of this process."""

    seed = 0

    def __init__(self, ends):
        self.ends = ends

    def steps(self, first, accumulation):
        each = accumulation // world()
        for step in count(first):
            if step == COUNTED and self.ends is not None:
                self.ends()
            yield [microbatch(step * accumulation + number) for number in range(rank() * each, (rank() + 1) * each)]

    def sequences(self, accumulation):
        return 3 * accumulation

    def state_dict(self, step, accumulation):
        return {"step": step}

    def load_state_dict(self, state, accumulation):
        pass


def microbatch(number):
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(10, (3, 6), generator=generator)
    masked = torch.rand(3, 6, generator=generator) < 0.5
    return Batch(tokens.where(~masked, torch.tensor(10)), tokens, masked, torch.rand(3, 6, generator=generator) * masked, None)


def train(name, folder, shared=fully_sharded, ends=None, trials=1, optimizer=adamw, behind=False, run=execution.eager):
    """Train a model in this process, perhaps one of several, and keep model, snapshot and losses in a folder.

    Args:
        ends: what happens before the last step but one.
        behind: snapshots are written while it goes on, in this process from now on.
    """
    if behind:
        snapshot_writing.BEHIND += ("cpu",)
        snapshot_writing.write_tensors = partial(later, snapshot_writing.write_tensors)
    step_operations.SEQUENCES = 0  # operations are counted over the first COUNTED steps, which are so read ahead
    model, runtime = MODELS[name](), Runtime(threads=1)
    runtime.enter_process()
    folder.mkdir(parents=True, exist_ok=True)

    def save():
        write_tensors(folder / "model.safetensors", model.state_dict())

    held_out = [(0, microbatch(99))]  # of which the first process takes all
    phase = TrainRun("test", model, Shared(ends), lambda: iter(held_out[rank() :]), folder, save, runtime, trials=trials)
    settings = {"optimizer": partial(optimizer, lr=1e-2), "accumulation": MICRO, "ema": 0.5, "save_every": 2, "execution": run}
    with snapshots.workspace("test", "identity"):
        result = fit(phase, steps=COUNTED + 2, objective=Objective, sharding=shared, validate_every=2, log_every=1, **settings)
        if rank() == 0:
            write_tensors(folder / "snapshot.safetensors", snapshots.of("test").load(None)[0])
    own = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters() if p.requires_grad)
    losses = [validation["loss_by_step"] for validation in result.validation]
    (folder / f"result-{rank()}.json").write_text(json.dumps({"losses": losses, "own": own}))


def later(write, path, tensors):
    """Write when the next steps have gone on meanwhile."""
    time.sleep(0.2)
    write(path, tensors)


SCRIPT = """
from pathlib import Path
from pipeline.machine.distributed import joined
from tests.pipeline.training import test_sharding as tests

with joined():
    tests.{call}
"""


def in_processes(world, folder, call):
    """Call something of this module in several processes, in a folder where they keep their snapshots."""
    folder.mkdir(exist_ok=True)
    return forked(SCRIPT.format(call=call), world, folder)


def succeeded(processes):
    for process in processes:
        assert process.returncode == 0, process.stderr


def same(mine, theirs):
    """Whether two trainings left the same: losses, the model in its file, and what they would go on from."""
    losses = [json.loads((folder / "result-0.json").read_text())["losses"] for folder in (mine, theirs)]
    torch.testing.assert_close(*map(torch.tensor, losses), **CLOSE)
    for file in ("model.safetensors", "snapshot.safetensors"):
        these, those = load_file(mine / file), load_file(theirs / file)
        assert {n: (t.shape, t.dtype) for n, t in these.items()} == {n: (t.shape, t.dtype) for n, t in those.items()}
        assert any(tensor.norm() > 0.1 for tensor in these.values())
        for entry in these:
            torch.testing.assert_close(these[entry], those[entry], **CLOSE)


def weights_of(folder, rank):
    """How many trained numbers a process held."""
    return json.loads((folder / f"result-{rank}.json").read_text())["own"]


@pytest.fixture(autouse=True)
def _counted_as_before(monkeypatch):
    """What ``train`` sets in this process is as it was for the tests that come after."""
    monkeypatch.setattr(step_operations, "SEQUENCES", step_operations.SEQUENCES)
    monkeypatch.setattr(snapshot_writing, "BEHIND", snapshot_writing.BEHIND)
    monkeypatch.setattr(snapshot_writing, "write_tensors", snapshot_writing.write_tensors)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """``alone(name)``: folder of the same training in this process alone, as it is without sharing."""

    def run(name):
        (tmp_path / "by-itself").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "by-itself")
        train(name, tmp_path / "alone", shared=replicated)
        return tmp_path / "alone"

    return run


@pytest.mark.parametrize(("name", "processes"), [("refined", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)])
def test_shared_out_it_is_the_training_of_one_process(tmp_path, alone, name, processes):
    succeeded(in_processes(processes, tmp_path / "work", f"train({name!r}, Path('shared'))"))
    shared = tmp_path / "work/shared"
    same(shared, alone(name))
    own = [weights_of(shared, rank) for rank in range(processes)]
    assert max(own) < weights_of(tmp_path / "alone", 0) <= sum(own)


@pytest.mark.parametrize("name", ["refined", *(pytest.param(name, marks=pytest.mark.slow) for name in ("half", "library"))])
def test_layers_that_are_shared_out_can_run_once_more(tmp_path, alone, name):
    succeeded(in_processes(2, tmp_path / "work", f"train({name!r}, Path('shared'), run=tests.execution.checkpointed)"))
    same(tmp_path / "work/shared", alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
def test_a_run_goes_on_in_another_number_of_processes_and_unshared(tmp_path, alone, behind):
    expected, folder = alone("refined"), tmp_path / "work"
    begun = in_processes(4, folder, f"train('refined', Path('shared'), ends=tests.asked_to_end, behind={behind})")
    assert ["Interrupted" in process.stderr for process in begun] == [True] * 4
    assert len(list(folder.glob(f".scratch/test/*/test/step-{COUNTED + 1:09d}/part-*"))) == 4
    ways = {"one": (1, "fully_sharded"), "two": (2, "fully_sharded"), "three": (3, "fully_sharded"), "unshared": (2, "replicated")}
    for name, (processes, shared) in ways.items():
        shutil.copytree(folder, tmp_path / name)
        succeeded(in_processes(processes, tmp_path / name, f"train('refined', Path('shared'), shared=tests.{shared})"))
        same(tmp_path / name / "shared", expected)


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
def test_a_snapshot_of_which_a_disk_refuses_one_part_is_none(tmp_path, alone, behind):
    expected, folder = alone("refined"), tmp_path / "work"
    first, refused = in_processes(2, folder, f"train('refined', Path('shared'), ends=tests.limited, behind={behind})")
    assert "StorageError" in refused.stderr and "part-00001.safetensors cannot be written" in refused.stderr.splitlines()[-1]
    assert "Lost: lost process 1 of 2 (" in first.stderr.splitlines()[-1]
    there = sorted(path.name for path in folder.glob(".scratch/test/*/test/*"))
    last = [f"step-{step:09d}" for step in (COUNTED - 2, COUNTED)]
    assert there == last or (behind and there == last[:1])  # the second is still being written when the disk begins to refuse
    succeeded(in_processes(2, folder, "train('refined', Path('shared'))"))
    same(folder / "shared", expected)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What a training of two processes leaves whose snapshots are written before it goes on."""
    folder = tmp_path_factory.mktemp("two")
    succeeded(in_processes(2, folder, "train('refined', Path('shared'))"))
    return contents(folder / "shared")


def contents(folder):
    """The bytes of every file."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_training_whose_parts_are_written_behind_ends_with_the_same_bytes(tmp_path, two):
    succeeded(in_processes(2, tmp_path / "work", "train('refined', Path('shared'), behind=True)"))
    assert contents(tmp_path / "work/shared") == two


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_parts_are_written_behind_the_next_run_ends_with_the_same_bytes(tmp_path, two, rank):
    """The second snapshot is never whole: the first has its name when the second is begun."""
    folder = tmp_path / "work"
    ended = in_processes(2, folder, f"killed({rank}, Path('shared'))")
    assert ended[rank].returncode == -signal.SIGKILL and f"Lost: lost process {rank} of 2 (" in ended[1 - rank].stderr
    assert [path.name for path in folder.glob(".scratch/test/*/test/step-*")] == [f"step-{2:09d}"]
    succeeded(in_processes(2, folder, "train('refined', Path('shared'), behind=True)"))
    assert contents(folder / "shared") == two


def killed(number, folder):
    """A training of which one process is killed when half of its part of the second snapshot is written."""
    write, parts = snapshot_writing.write_tensors, []

    def stopping(path, tensors):
        parts.extend([path] if path.name.startswith("part-") else [])
        if len(parts) == 2 and rank() == number:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, tensors)

    snapshot_writing.write_tensors = stopping
    train("refined", folder, behind=True)


def limited():
    """The second process may write no file of the size of a snapshot any more."""
    if rank():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def asked_to_end():
    """As a scheduler asks: the step is finished and a snapshot written."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_process_that_is_not_there_any_more_is_told_in_a_line(tmp_path):
    first, other = in_processes(2, tmp_path / "work", "train('backbone', Path('shared'), ends=tests.gone)")
    assert "Lost: lost process 1 of 2 (" in first.stderr.splitlines()[-1] and "run it again" in first.stderr.splitlines()[-1]
    assert other.returncode == 3


def gone():
    """The second process is no longer there."""
    if rank():
        os._exit(3)


def test_what_needs_whole_weights_is_refused(tmp_path):
    succeeded(in_processes(2, tmp_path / "work", "refused(Path('shared'))"))


def refused(folder):
    for settings, reason in (
        ({"optimizer": muon}, "Muon needs whole ones: use @optim.adamw"),
        ({"trials": 3}, "CONTROL_RATES asks for 3"),
    ):
        with pytest.raises(ConfigError, match=reason):
            train("backbone", folder, **settings)


def test_alone_and_where_no_layer_is_trained_whole_nothing_is_shared_out():
    model = refined()
    assert not fully_sharded(model, Objective(3)).are_parts
    model.backbone.blocks["1"].requires_grad_(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert not fully_sharded(model, Objective(3)).are_parts
