"""Layers of settings: what a preset binds must have an effect somewhere, and what is shared is used where a stage can use it."""

import re
from pathlib import Path

import pytest

from pipeline.command_line import SECTIONS
from pipeline.errors import ConfigError
from pipeline.settings import config, params

SMOKE = "preset: smoke\n"


def resolve_all(text):
    Path("params.yaml").write_text(text)
    return config.resolve_all(SECTIONS, params.read(Path("params.yaml"), SECTIONS))


def preset(*lines):
    text = "from __gin__ import dynamic_registration\ninclude 'gin/presets/smoke.gin'\n"
    Path("gin/presets/mine.gin").write_text(text + "".join(f"{line}\n" for line in lines))
    return "preset: mine\n"


# What a stage gives itself


@pytest.mark.parametrize(
    ("stage", "instead"), [("finetune", "finetune.run.steps says"), ("controls", "as many steps as the compute of the phases pays")]
)
@pytest.mark.parametrize("key", ["loop.fit.steps", "trained_on.loop.fit.steps"])
def test_steps_that_a_stage_sets_itself_cannot_be_bound(root, stage, instead, key):
    with pytest.raises(ConfigError, match=rf"params.yaml:2 .*steps' is valid, but nothing that stage {stage} builds uses it"):
        resolve_all(SMOKE + f"{stage}: {{bindings: {{{key}: 7}}}}\n")
    with pytest.raises(ConfigError, match=instead):
        resolve_all(SMOKE + f"{stage}: {{bindings: {{loop.fit.steps: 7}}}}\n")


def test_steps_of_a_preset_that_every_stage_sets_itself_are_refused(root):
    text = preset("from pipeline.training import loop", "loop.fit.steps = 7")
    with pytest.raises(ConfigError, match=r"gin/presets/mine.gin:4: 'loop.fit.steps' has no effect: .*the stage's own gin file"):
        resolve_all(text)


@pytest.mark.parametrize("line", ["loop.fit.clip = 0.5", "optim.adamw.betas = (0.8, 0.9)", "supervision.linear_decay.weight = 0.2"])
def test_what_a_preset_binds_with_effect_in_one_stage_is_accepted(root, line):
    text = preset(*(f"from {where}" for where in IMPORTS), line)
    assert any(line.partition(" =")[0] in of_stage for of_stage in resolve_all(text).values())


IMPORTS = ("pipeline.training import loop", "components.training import optim", "components.objective import supervision")


def test_what_a_preset_binds_for_a_choice_that_is_overridden_is_accepted(root):
    text = preset("from components.refiners import refiner", "refiner.SlotRefiner.blocks = 1")
    assert "SlotRefiner.blocks" in resolve_all(text)["warmup"]
    resolve_all(text + "warmup: {bindings: {REFINER: '@mlp_refiner.MLPRefiner'}}\n")


# References in common

SHARED = {
    "REFINER: '@recursive_core.RecursiveCore'": ({"warmup"}, "@recursive_core.RecursiveCore"),
    "BACKBONE: '@recursive_lm.RecursiveLM'": ({"backbone"}, "@recursive_lm.RecursiveLM"),
    "LIKELIHOOD: '@likelihood.Likelihood'": ({"evaluate"}, "@likelihood.Likelihood"),
    "objective.Objective.supervision: '@supervision.learned'": (
        {"warmup", "joint", "finetune", "controls"},
        "@supervision.learned",
    ),
    "MASKING: '@masking.bernoulli'": ({"extract", "finetune", "controls"}, "@masking.bernoulli"),
}


@pytest.mark.parametrize(("bindings", "expected"), SHARED.items(), ids=SHARED)
def test_a_reference_in_common_is_taken_where_a_stage_can_use_it(root, bindings, expected):
    stages, reference = expected
    texts = resolve_all(SMOKE + f"common: {{bindings: {{{bindings}}}}}\n")
    assert {stage for stage, text in texts.items() if re.search(rf"{reference}$", text, re.MULTILINE)} >= stages


@pytest.mark.parametrize(
    ("bindings", "match"),
    [
        (
            "REFINER: '@recursive_core.RecursivCore'",
            "params.yaml:2 common.bindings.REFINER: nothing configurable is called 'rec",
        ),
        ("REFINER: '@likelihood.Likelihood'", "params.yaml:2 common.bindings.REFINER: "),
        ("loop.fit.schedule: '@optim.nothing'", "nothing configurable is called 'optim.nothing'"),
        ("loop.fit.shedule: '@optim.warmup_cosine'", "no stage uses this, or it is misspelt"),
        ("NOTHING: '@optim.warmup_cosine'", "no stage uses this, or it is misspelt"),
    ],
)
def test_a_reference_in_common_that_no_stage_can_use_is_refused(root, bindings, match):
    with pytest.raises(ConfigError, match=re.escape(match)):
        resolve_all(SMOKE + f"common: {{bindings: {{{bindings}}}}}\n")
