"""Compiled steps: the values of written ones, few graphs for any number of steps, and a clear word where it cannot work."""

import inspect
import os
import subprocess
import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.nn import fused
from components.objective.activations import checkpoint
from components.objective.deep_supervision import backward
from components.objective.objective import Objective
from components.recursion import one_step_gradient
from components.refined_lm import RefinedLM
from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime
from pipeline.planning import memory
from pipeline.training.execution import checkpointed, compiled, eager
from pipeline.training.loop import fit, validation_losses
from pipeline.training.train_state import TrainRun
from tests.conftest import ROOT
from tests.support.cores import DIM, batch, made, model_of, recursive, slots
from tests.support.llama import llama


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def gradients(model, steps, **settings):
    """A copy of every gradient and loss."""
    model.zero_grad(set_to_none=True)
    found = backward(model.train(), batch(), [1.0] * steps, sequences=3, statistics=True, **settings)
    return [p.grad for p in model.parameters() if p.grad is not None] + [torch.stack(found.losses)]


def close(one, other):
    return len(one) == len(other) > 5 and all((a - b).norm() <= 1e-6 * b.norm() for a, b in zip(one, other, strict=True))


def refined(core, steps):
    backbone = model_of("slots", dtype=torch.float32).backbone
    return RefinedLM(backbone, made(lambda dim: core(dim, steps=steps)))


def test_as_written_is_the_default_and_changes_nothing():
    model = model_of("slots")
    before = vars(model.refiner).keys()
    eager(model)
    assert vars(model.refiner).keys() == before and inspect.signature(fit).parameters["execution"].default is eager


def test_a_backbone_alone_has_nothing_to_compile():
    model = TinyLM(9, 6, DIM, 1, heads=2)
    compiled(model)
    assert "forward" not in vars(model)


def test_packed_tokens_are_an_error_that_names_the_setting():
    with pytest.raises(ConfigError, match=r"loop\.fit\.execution = .* a Hybrid packs its tokens.*@execution\.eager"):
        compiled(model_of("hybrid"))


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_compiler_is_told_what_is_in_force(monkeypatch, mode):
    """Which is not done where it is put in force: to import the compiler takes a second."""
    import torch._inductor.config as config

    monkeypatch.setattr("pipeline.training.execution._check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    torch.set_deterministic_debug_mode(mode)
    try:
        with config.patch(deterministic=not mode):
            compiled(model_of("slots"))
            assert config.deterministic == bool(mode) and torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(0)


def test_what_is_repeated():
    assert [type(m).__name__ for m in model_of("cascade_recursive").compile_targets()] == ["SlotRefiner", "PostNormBlock"]
    assert [type(m).__name__ for m in model_of("recursive_updates").compile_targets()] == ["PostNormBlock"]
    assert [type(m).__name__ for m in model_of("standalone").compile_targets()] == ["PostNormBlock"]


@pytest.mark.parametrize("name", ["slots", "slots_of_backbone", "tapped", "recursive", "hybrid", "memory"])
def test_layers_that_run_once_more_give_the_same_bits_and_keep_their_names(name):
    written, again = model_of(name, joint=True), model_of(name, joint=True)
    names = list(again.state_dict())
    assert checkpointed(again) is again and list(again.state_dict()) == names
    plain, twice = (gradients(model, written.n_steps) for model in (written, again))
    assert len(plain) == len(twice) > 20 and all(torch.equal(a, b) for a, b in zip(plain, twice, strict=True))


def test_layers_run_once_more_where_a_gradient_is_made():
    model, ran = TinyLM(11, 6, DIM, 3, heads=2), []
    for layer in model.blocks.values():
        layer.attention_norm.register_forward_pre_hook(lambda *_: ran.append(1))
    checkpointed(model).train()
    gradients(model, 1)
    assert len(ran) == 6
    with torch.no_grad():
        model.states(batch())
    assert len(ran) == 9


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("make", [partial(TinyLM, 11, 6, DIM, 16, heads=2), partial(llama, DIM, 16, intermediate_size=4 * DIM)])
def test_of_many_layers_one_is_in_memory_at_a_time(device, make):
    """Beside it only what went into each; a phase leaves the library's layers in evaluation mode."""
    peaks = []
    for execution in (eager, checkpointed):
        model = make().to(device).train()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        execution(model)
        many = batch(sequences=300).to(torch.device(device))
        peaks.append(memory.peak(partial(Objective(1).gradient, model, many, sequences=300)))
    assert peaks[1] < 0.35 * peaks[0]


def test_a_model_without_layers_of_its_own_is_an_error_that_names_the_setting():
    with pytest.raises(ConfigError, match=r"loop\.fit\.execution = @execution\.checkpointed: a RecursiveLM has no layers.*eager"):
        checkpointed(model_of("standalone"))


def check_values(name):
    core, count = {"slots": (slots, 2), "recursive": (recursive, 1)}[name]
    for steps, new in ((3, count), (5, 0)):  # other numbers of steps, and other models of the same sizes, share them
        written, fast = refined(core, steps).double(), refined(core, steps).double()  # rounding grows with the steps
        names = list(fast.state_dict())
        compiled(fast)
        assert list(fast.state_dict()) == names
        first = graphs()
        for _ in range(2):
            assert close(gradients(fast, steps), gradients(written, steps))
        assert graphs() - first == new, graphs() - first
        validation_losses(
            fast, enumerate([batch(seed=1, sequences=2)]), Plain(), Objective(fast.n_steps)
        )  # as written: no graph of its own
        assert graphs() - first == new
    settings = {"activations": checkpoint, "bptt": one_step_gradient}
    assert close(gradients(fast, steps, **settings), gradients(written, steps, **settings))


def check_products():
    """A layer whose products are oneDNN's, eager and compiled: the same bits, of values and of gradients."""
    fused.BY_ONEDNN = True
    x, layer = torch.randn(3, 5, 8, requires_grad=True), fused.Linear(8, 24)
    written, fast = (
        torch.autograd.grad(forward(x).square().sum(), (x, layer.weight))
        for forward in (layer, torch.compile(layer.forward, dynamic=False, fullgraph=True))
    )
    assert all(torch.equal(a, b) for a, b in zip(written, fast, strict=True))


class Plain:
    device = torch.device("cpu")

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


class Same:
    """One microbatch over and over."""

    seed = 0

    def steps(self, first, accumulation):
        return ([batch()] for _ in count(first))

    def sequences(self, accumulation):
        return 3

    def state_dict(self, step, accumulation):
        return {"step": step}

    def load_state_dict(self, state, accumulation):
        pass


def check_resuming(folder):
    ends = []
    runtime = Runtime(threads=1)
    for name, executions in {"written": [eager], "both": [compiled, eager]}.items():
        for number, execution in enumerate(executions):
            model, last = refined(slots, 2), number == len(executions) - 1
            model.backbone.requires_grad_(False)
            supply = Same()
            if not last:  # it ends for want of batches, after two steps
                supply.steps = lambda first, accumulation: iter([[batch()]] * 2)
            settings = {"steps": 4, "save_every": 1, "execution": execution}
            try:
                out = Path(folder) / name
                fit(TrainRun(name, model, supply, lambda: enumerate([batch(seed=1)]), out, lambda: None, runtime), **settings)
            except StopIteration:
                assert not last
        ends.append(torch.cat([p.detach().flatten() for p in model.refiner.parameters()]))
    assert torch.allclose(*ends, atol=1e-4) and not torch.equal(ends[0], parameters_at_first())


def parameters_at_first():
    return torch.cat([p.detach().flatten() for p in refined(slots, 2).refiner.parameters()])


def plainly(call, folder=ROOT, **variables):
    """Run a check of this file in a process of its own: checks of types, which other tests run with, are nothing to compile."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLOTLOOP_SCRATCH": str(folder), **variables}
    work = f"from tests.pipeline.training import test_execution; test_execution.{call}"
    return subprocess.run([sys.executable, "-c", work], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("core", ["slots", "recursive"])
def test_few_graphs_serve_any_number_of_steps_and_give_the_same_values(core):
    done = plainly(f"check_values('{core}')")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_products_by_onednn_are_compiled_without_a_difference():
    done = plainly("check_products()")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_was_compiled_continues_as_written(tmp_path):
    """Two steps compiled and two as written end where four as written do."""
    done = plainly(f"check_resuming('{tmp_path}')", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_compiler_is_an_error_that_says_what_to_install():
    done = plainly("compiled(test_execution.model_of('slots'))", CXX="/no/such/compiler")
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError" in last and "needs a compiler (on CPU a C++ compiler such as g++" in last and "@execution.eager" in last
