"""Every phase of a refiner with memory, by the recipe: trained over unrolled passes, evaluated, planned, cached as live."""

import contextlib
import json
import shutil
from functools import partial

import gin
import pytest
import torch
from safetensors.torch import load_file

from components.objective.masking import often_full
from components.objective.nested import Nested
from pipeline.command_line import SECTIONS
from pipeline.data import sources
from pipeline.inference.generation import Generator
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.planning import plan as planning
from pipeline.settings import config, params
from tests.conftest import ROOT, TRAINING, run_stages

RECIPE = {"preset": "smoke", "common": {"gin": ["gin/recipes/memory.gin"], "bindings": {"VALIDATE_EVERY": 4}}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage."""
    folder = tmp_path_factory.mktemp("memory")
    (folder / "gin").symlink_to(ROOT / "gin")
    (folder / "params.yaml").write_text(json.dumps(RECIPE))
    run_stages(folder, TRAINING)
    return folder


def metrics(folder, place):
    return json.loads((folder / place / "metrics.json").read_text())


def test_the_gates_learn_in_every_phase(finished):
    for phase in ("warmup", "joint"):
        gates = [value for name, value in load_file(finished / f"outputs/{phase}/model.safetensors").items() if ".gates." in name]
        assert len(gates) == 2 and all(gate.abs().max() > 0 for gate in gates)


def test_second_passes_are_measured_of_models_with_memory(finished):
    models = metrics(finished, "outputs/evaluate")["models"]
    measures = metrics(finished, "outputs/evaluate")["measures"]
    for measure in measures:
        has = {name for name, values in models.items() if "second_pass" in values[measure]}
        assert has == {"warmup", "joint", "control_warmup"}
        second = models["joint"][measure]["second_pass"]
        assert {"nll", "token_accuracy", "exact", "minus_single"} == set(second) and second["nll"]["n"] == models["joint"][measure][
            "nll"
        ]["n"]


def test_the_plan_counts_what_training_counts(finished):
    with contextlib.chdir(finished):
        texts = config.resolve_all(SECTIONS, params.read(finished / "params.yaml", SECTIONS), root=ROOT)
        costs = {cost.stage: cost for cost in planning.plan(texts).costs}
    gin.clear_config()
    rows = json.loads((finished / "data/prepared/manifest.json").read_text())["splits"]["train"]["examples"]
    for phase in ("warmup", "joint"):
        assert costs[phase].flops_per_step == metrics(finished, f"outputs/{phase}")["flops_per_step"]
        assert costs[phase].epochs == costs[phase].steps * 32 * 2 / rows


def test_a_step_costs_what_as_many_passes_cost_without_memory_but_for_the_gate(finished, tmp_path):
    copy = copied(finished, tmp_path)
    without = {"REFINER": "@refiner.SlotRefiner"}
    (copy / "params.yaml").write_text(json.dumps({**RECIPE, "warmup": {"bindings": without}}))
    run_stages(copy, ("warmup",))
    ours, plain = (metrics(folder, "outputs/warmup")["flops_per_step"] for folder in (finished, copy))
    rows, seq, dim = 32, 16, 16
    gate = 2 * rows * seq * 2 * dim * dim  # of the second pass: forward, and backward to its weights and to both states
    confidence = 2 * rows * seq * dim * dim // 8  # whose slot reads the first step's state, which a gradient now has to reach
    assert ours == plain + 3 * gate + confidence


def test_live_passes_are_the_stored_ones(finished):
    backbone = Backbone(finished / "data/backbone")
    live = partial(
        sources.live, prepared=str(finished / "data/prepared"), masking=Nested(often_full), seed=0, tail_layers=1, draws=2,
        dtype="fp32", runtime=Runtime("cpu", threads=1),
    )  # fmt: skip
    cached = partial(sources.cached, shards=str(finished / "data/shards"))
    stored, fresh = (sources.unrolled("train", backbone=backbone, states=states) for states in (cached, live))
    rows = torch.tensor([5, 77, 20])
    for ours, other in zip(*(source.batch(rows, torch.tensor([0, 1, 2])).passes for source in (stored, fresh)), strict=True):
        assert torch.equal(ours.masked, other.masked) and torch.equal(ours.tokens, other.tokens)
        assert torch.equal(ours.weights, other.weights)
        torch.testing.assert_close(ours.hidden, other.hidden)


def test_it_answers(finished):
    generator = Generator(
        finished / "outputs/joint", backbone=str(finished / "data/backbone"), prepared=str(finished / "data/prepared")
    )
    assert generator.model.remembers and "." not in generator("12../..../4.../...1").text


def copied(finished, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "gin").symlink_to(ROOT / "gin")
    shutil.copytree(finished / "data", copy / "data")
    return copy
