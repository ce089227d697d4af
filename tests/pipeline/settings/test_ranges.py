"""Every setting with a range is checked by configure: whoever sets it, through whichever macro, in one line."""

import inspect
import re

import gin
import pytest

from components.ranges import stated
from pipeline.command_line import SECTIONS
from pipeline.errors import ConfigError
from pipeline.settings import config, ginstate, params
from pipeline.settings.ginfiles import MACRO
from pipeline.settings.typecheck import annotation, describe
from tests.conftest import ROOT


@pytest.fixture
def resolve(tmp_path):
    def resolve(stage, *bindings, preset="smoke", overrides=()):
        file = tmp_path / "params.yaml"
        lines = [f"  bindings: {{{', '.join(bindings)}}}"] if bindings else ["  {}"]
        file.write_text("\n".join([f"preset: {preset}", f"{stage}:", *lines]) + "\n")
        return config.resolve(stage, params.read(file, SECTIONS), overrides, root=ROOT).text

    yield resolve
    gin.clear_config()


OUTSIDE = [
    *[("warmup", f"loop.fit.{name}", value) for name, value in (
        ("clip", -1.0), ("ema", 1.0), ("ema", -0.1), ("patience", -1), ("steps", 0), ("validate_every", 0), ("save_every", 0),
        ("log_every", 0), ("accumulation", 0),
    )],
    *[("joint", f"optim.{name}", value) for name, value in (
        ("adamw.lr", -0.01), ("adamw.backbone_lr", -1e-5), ("adamw.weight_decay", -0.1),
        ("adamw.betas", "[1.0, 0.9]"), ("adamw.betas", "[0.9, 1.0]"), ("warmup_cosine.lr_warmup_steps", -5),
        ("warmup_cosine.floor", 1.5),
    )],
    ("warmup", "objective.Objective.curriculum", 1.5), ("warmup", "objective.Objective.curriculum", -1.0),
    ("warmup", "warmup.run.batch_size", 0), ("warmup", "warmup.run.seed", -1), ("warmup", "warmup.run.validation_batch_size", 0),
    ("warmup", "runtime.Runtime.threads", 0), ("warmup", "refiner.SlotRefiner.steps", 0), ("finetune", "finetune.run.steps", -1),
    ("warmup", "refiner.SlotRefiner.blocks", 10_001), ("warmup", "refiner.SlotRefiner.steps", 2**63 - 1),
    ("backbone", "tiny_lm.TinyLM.layers", 10**9), ("warmup", "RECURSION_STEPS", 10**6),
    ("generate", "sampling.Sampler.guidance", 10**30),
    ("controls", "CONTROL_RATES", "[1.0, 0]"), ("controls", "controls.run.rates", "[-1.0]"),
    ("controls", "CONTROL_RATES", "[0.5, -2]"),
    ("controls", "lora.Lora.rank", 0), ("controls", "lora.Lora.alpha", 0.0), ("controls", "lora.Lora.alpha", -32.0),
    ("warmup", "BATCH", 0), ("joint", "EMA", 1), ("extract", "DRAWS", 0), ("extract", "extract.run.shard_bytes", 0),
    ("evaluate", "evaluate.run.decodes", "{a: [test_5, 10001, 1, 4]}"), ("evaluate", "evaluate.run.recursion_steps", 10**5),
    ("generate", "sampling.Sampler.blocks", 10**6), ("generate", "sampling.Sampler.steps", 2**63),
    ("generate", "generation.Generator.refined_passes", 10**30), ("generate", "sampling.Sampler.revisions", 0),
    ("joint", "sources.cached.near", 10**30), ("joint", "sources.cached.near", -1),
    ("prepare", "sudoku.Sudoku.train", 0), ("prepare", "sudoku.Sudoku.clues", "[0, 6]"), ("prepare", "sudoku.Sudoku.held_out", 1.0),
    ("prepare", "sudoku.Sudoku.test_clues", "[-7]"), ("prepare", "sudoku.Sudoku.grids", 0),
    ("evaluate", "evaluate.run.measures", "{a: [test_5, 1.5]}"), ("evaluate", "evaluate.run.samples", 0),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "key", "value"), OUTSIDE)
def test_a_value_outside_its_range_is_one_line_that_names_the_key(resolve, stage, key, value):
    with pytest.raises(ConfigError) as caught:
        resolve(stage, f"{key}: {value}")
    message = str(caught.value)
    assert re.search(r"params.yaml:3 .* must be (at least|above|at most|below)", message) and key in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -0.01), ("backbone_lr", -1e-5), ("momentum", 1.0), ("momentum", -0.1), ("betas", "[0.9, 1.0]"), ("weight_decay", -0.1)],
)
def test_settings_of_muon_have_ranges_where_it_is_the_optimizer(resolve, name, value):
    with pytest.raises(ConfigError, match=rf"optim.muon.{name}.* must be at least"):
        resolve("joint", f"optim.muon.{name}: {value}", overrides=["loop.fit.optimizer=@optim.muon"])


def test_a_stages_rates_are_those_of_the_optimizer_that_is_chosen(resolve):
    text = resolve("joint", "loop.fit.optimizer: '@optim.muon'")
    assert "optim.muon.lr = %JOINT_LR" in text and "optim.muon.backbone_lr = %TAIL_LR" in text and "optim.adamw" not in text


@pytest.mark.parametrize(
    ("preset", "key", "value"),
    [
        ("gsm8k", "jsonl.QuestionAnswers.validation", 1.0), ("gsm8k", "jsonl.QuestionAnswers.validation", 0.0),
        ("gsm8k", "jsonl.QuestionAnswers.sequence", 0), ("gsm8k", "jsonl.QuestionAnswers.vocabulary", -1),
        ("concepts", "sentences.Documents.sequence", 1), ("concepts", "sentences.Documents.test_documents", 0),
        ("concepts", "sentences.Documents.validation", -0.5),
    ],
)  # fmt: skip
def test_settings_of_corpora_have_ranges_too(resolve, preset, key, value):
    with pytest.raises(ConfigError, match=rf"{key} must be .*, got {value}"):
        resolve("prepare", f"{key}: {value}", preset=preset)


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("warmup", "loop.fit.clip", 0), ("warmup", "loop.fit.ema", 0), ("warmup", "loop.fit.patience", 0),
        ("joint", "optim.adamw.lr", 0),
        ("joint", "optim.adamw.weight_decay", 0), ("joint", "optim.warmup_cosine.lr_warmup_steps", 0),
        ("warmup", "objective.Objective.curriculum", 1), ("finetune", "finetune.run.steps", 0),
        ("joint", "optim.adamw.betas", "[0, 0]"),
    ],
)  # fmt: skip
def test_a_bound_that_is_allowed_is_taken(resolve, stage, key, value):
    assert f"{key} = " in resolve(stage, f"{key}: {value}")


def test_the_command_line_is_held_to_the_same_ranges(resolve):
    with pytest.raises(ConfigError, match=r"command line 'loop.fit.clip=-1': loop.fit.clip must be at least 0, got -1"):
        resolve("warmup", overrides=["loop.fit.clip=-1"])


FREE = {  # numbers without a range of their own: what they must fit says so
    "Sudoku.size", "Answers.patterns", "Answers.exact_match", "model.device_map", "SlotRefiner.slots",
    "TinyLM.first_layer", "RecursiveLM.first_layer",
    "RecursiveLM.layers", "SlotRefiner.context_layers",  # -1 is the last; RefinedLM says which layers run
    "run.taps", "live.taps", "Tapped.layers",
}  # fmt: skip


@pytest.mark.parametrize("preset", ["sudoku4", "literal", "recursive4", "gsm8k", "gsm8k_llada", "concepts"])
def test_every_number_that_a_setting_can_be_states_its_range(resolve, preset):
    without, counted = set(), 0
    for stage in SECTIONS:
        config.load_text(resolve(stage, preset=preset), stage)
        for call in ginstate.built(f"stages.{stage}.run"):
            if call.selector == MACRO:
                continue
            function = ginstate.wrapped(call.selector)
            for parameter in inspect.signature(function).parameters.values():
                kind = describe(annotation(function, parameter.name))
                reaches = parameter.name in call.bindings or parameter.default is not parameter.empty
                if not reaches or "Callable" in kind or not re.search(r"\b(int|float)\b", kind):
                    continue
                counted += 1
                if not stated(annotation(function, parameter.name, ranges=True)):
                    without.add(f"{call.selector.split('.')[-1]}.{parameter.name}")
    assert counted > 60 and without <= FREE, without - FREE
