"""Every model of a configuration, built on shapes: what is trained, what does not fit, and that nothing is computed or kept."""

import json
from contextlib import nullcontext

import gin
import pytest
import torch
from safetensors import safe_open

from components.backbones.tiny_lm import TinyLM
from components.refined_lm import RefinedLM
from pipeline.command_line import SECTIONS
from pipeline.corpora.sudoku import Sudoku
from pipeline.errors import ConfigError
from pipeline.manifests import write_manifest
from pipeline.models import lora
from pipeline.settings import config, params, rehearsal
from pipeline.text import tokenizer as bpe
from tests.conftest import ROOT
from tests.support import checkpoints
from tests.support.optional import needs

TRAINING = ("backbone", "warmup", "joint", "finetune", "controls")
NEEDED = ("prepare", "extract", *TRAINING, "evaluate")


@pytest.fixture(scope="module")
def rehearse(tmp_path_factory):
    """``rehearse(line of params.yaml, ...)``: the models of the smoke preset so changed."""
    file = tmp_path_factory.mktemp("rehearsal") / "params.yaml"

    def texts(stages, lines):
        file.write_text("\n".join(["preset: smoke", *lines]) + "\n")
        read = params.read(file, SECTIONS)
        return {stage: config.resolve(stage, read, root=ROOT).text for stage in stages}

    plain = texts(NEEDED, ())

    def rehearse(*lines):
        sections = {line.partition(":")[0] for line in lines}
        return rehearsal.rehearse(plain | texts(NEEDED if "common" in sections else sections, lines))

    yield rehearse
    gin.clear_config()


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_training_stage_has_its_model(rehearse):
    models = rehearse()
    assert tuple(models) == TRAINING
    assert isinstance(models["backbone"], TinyLM) and all(isinstance(models[stage], RefinedLM) for stage in TRAINING[1:])
    assert [models[stage].backbone.first_layer for stage in TRAINING[1:]] == [1, 1, 0, 1]  # finetune alone holds the trunk


def test_nothing_takes_memory(rehearse):
    for model in rehearse().values():
        tensors = [*model.parameters(), *model.buffers()]
        assert tensors and all(tensor.device.type == "meta" for tensor in tensors)


def test_what_is_frozen_is_frozen(rehearse):
    models = rehearse()
    everything = {name for name, _ in models["finetune"].named_parameters()}
    refiner = {name for name in everything if name.startswith("refiner.")}
    assert trained(models["backbone"]) == {name for name, _ in models["backbone"].named_parameters()}
    assert trained(models["warmup"]) == trained(models["controls"]) == refiner
    assert trained(models["joint"]) == refiner | {name for name in everything if name.startswith("backbone.blocks.1.")}
    assert trained(models["finetune"]) == everything


def test_the_shapes_are_those_of_the_models_that_are_trained(rehearse, finished):
    models = rehearse()
    for stage, folder in (("backbone", "data/backbone"), ("warmup", "outputs/warmup"), ("joint", "outputs/joint")):
        with safe_open(finished / folder / "model.safetensors", "pt") as kept:
            shapes = {name: tuple(kept.get_slice(name).get_shape()) for name in kept.keys()}  # noqa: SIM118
        model = models[stage]
        rehearsed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        assert shapes.items() <= rehearsed.items() and trained(model) <= set(shapes), stage


def test_sizes_are_told_in_words(rehearse):
    told = rehearsal.sizes(rehearse())
    assert told == "backbone 6,640, warmup 3,915, joint 7,019, finetune 10,555, controls 3,915"


def test_the_machine_is_left_as_it_was(rehearse):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    rehearse("common: {bindings: {THREADS: 7, DEVICE: cuda}}")  # a machine that is not here
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    weight = torch.nn.Linear(3, 3).weight
    assert weight.device.type == "cpu" and weight.abs().sum() > 0  # initialisers work again
    assert torch.nn.init.ones_(torch.empty(2)).tolist() == [1.0, 1.0]


def test_after_a_mistake_too(rehearse):
    with pytest.raises(ConfigError):
        rehearse("common: {bindings: {HEADS: 5}}")
    assert torch.nn.init.ones_(torch.empty(2)).tolist() == [1.0, 1.0]
    assert tuple(rehearse()) == TRAINING


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("common: {bindings: {HEADS: 5}}", "^backbone: heads must divide dim, got dim 16 and heads 5"),
        ("backbone: {bindings: {HEADS: 16, ROTARY: true}}", "^backbone: rotary positions need heads of even width, got 1"),
        ("prepare: {bindings: {sudoku.Sudoku.size: 5}}", "^Sudoku.size must be one of 4, 6, 9, got 5"),
        ("common: {bindings: {TAIL_LAYERS: 3}}", "^extract: a tail of 3 layers cannot be cut from a backbone of 2"),
        (
            "prepare: {bindings: {sudoku.Sudoku.clues: [9, 6]}}",
            r"^Sudoku.clues must lie within 4 and 15 at size 4, the lower number first, got 9..6",
        ),
        (
            "prepare: {bindings: {sudoku.Sudoku.test_clues: [17]}}",
            r"^Sudoku.test_clues must lie within 4 and 15 at size 4, .* got 17..17",
        ),
        ("extract: {bindings: {TAIL_LAYERS: -1}}", "extract.run.tail_layers must be at least 0, got -1"),
        ("common: {bindings: {TAPS: [1]}}", r"^extract: tap 1 is layer 1, at or above the split \(layer 1\): .* from 0 to 0$"),
        ("common: {bindings: {TAPS: [-1]}}", "^extract: tap -1 is layer 1, at or above the split"),
        ("common: {bindings: {TAPS: [-3]}}", r"^extract: taps read the states that enter layers, .* 2 \(0 to 1\), got -3$"),
        ("common: {bindings: {TAPS: [0, -2]}}", "^extract: taps must be layers of their own, got layer 0 twice"),
        ("common: {bindings: {TAPS: [0], TAIL_LAYERS: 2}}", "^extract: tap 0 needs a layer below the split, which is layer 0"),
        ("common: {bindings: {TAPS: deep}}", "extract.run.taps"),
        ("warmup: {bindings: {REFINER: '@tapped.Tapped'}}", "^warmup: Tapped reads the states of no layer: set TAPS"),
        (
            "warmup: {bindings: {REFINER: '@tapped.Tapped', TAPS: [0]}}",
            r"^warmup: the refiner reads the states that enter layer 0, .* those of no layer come .* set TAPS .* to \[0\]$",
        ),
        (
            "common: {bindings: {LAYERS: 4, TAPS: [0, 2], REFINER: '@tapped.Tapped', tapped.Tapped.layers: [1, 2]}}",
            r"^warmup: the refiner reads the states that enter layer 1, .* those of \[0, 2\] come .* to \[1, 2\]$",
        ),
        (
            "common: {bindings: {REFINER: '@tapped.Tapped', tapped.Tapped.layers: [2]}}",
            r"^warmup: taps read the states that enter layers, of which there are 2 \(0 to 1\), got 2$",
        ),
        (
            "common: {bindings: {REFINER: '@tapped.Tapped', TAPS: [0]}}\n"
            "warmup: {bindings: {warmup.run.states: '@sources.live', sources.live.taps: []}}",
            r"^warmup: the refiner reads the states that enter layer 0, .* those of no layer come",
        ),
        (
            "common: {bindings: {REFINER: '@tapped.Tapped', TAPS: [0]}}\n"
            "warmup: {bindings: {warmup.run.states: '@sources.remote', sources.remote.taps: []}}",
            r"^warmup: the refiner reads the states that enter layer 0, .* those of no layer come",
        ),
        (
            "warmup: {bindings: {refiner.SlotRefiner.slots: [[low, tap 0, 3], [a, state, 3]]}}",
            "^warmup: the refiner reads the states that enter layer 0, .* those of no layer come",
        ),
        (
            "warmup: {bindings: {refiner.SlotRefiner.slots: [[low, tap x, 3], [a, state, 3]]}}",
            "^warmup: the source of slot 'low' must be one of .* or 'tap' and a layer's number, got 'tap x'",
        ),
        (
            "common: {bindings: {BACKBONE: '@recursive_lm.RecursiveLM', TAIL_LAYERS: 0, TAPS: [0]}}",
            "^extract: the states that enter a layer of a RecursiveLM cannot be read: leave out taps",
        ),
        ("backbone: {bindings: {LAYERS: 0}}", "^extract: a tail of 1 layers cannot be cut from a backbone of 0"),
        ("warmup: {bindings: {refiner.SlotRefiner.heads: 3}}", "^warmup: heads must divide dim, got dim 16 and heads 3"),
        ("warmup: {bindings: {RECURSION_STEPS: 0}}", "refiner.SlotRefiner.steps must be at least 1, at most 10000, got 0"),
        ("warmup: {bindings: {refiner.SlotRefiner.slots: [[mood, state, 3]]}}", "^warmup: a slot refiner needs at least 2 slots"),
        ("warmup: {bindings: {refiner.SlotRefiner.slots: [[a, state, 3], [a, state, 3]]}}", "names of their own, got 'a' twice"),
        (
            "evaluate: {bindings: {evaluate.run.recursion_steps: 0}}",
            "evaluate.run.recursion_steps must be at least 1, at most 10000, got 0",
        ),
        ("warmup: {bindings: {warmup.run.unfreeze: [refnier]}}", "^warmup: no module matches 'refnier'; the nearest are refiner"),
        (
            "joint: {bindings: {joint.run.unfreeze: [backbone.blocks.0]}}",
            "^joint: no module matches 'backbone.blocks.0'; .*blocks.1",
        ),
        (
            "common: {bindings: {BACKBONE_TRAINS: []}}",
            "^backbone: backbone.run.unfreeze names nothing to train, and fit takes steps",
        ),
        (
            "common: {bindings: {CONTROL_TRAINS: []}}",
            "^controls: controls.run.unfreeze_backbone names nothing .* fit_backbone takes",
        ),
        ("warmup: {bindings: {warmup.run.unfreeze: []}}", "^warmup: warmup.run.unfreeze names nothing to train"),
        (
            "finetune: {bindings: {finetune.run.steps: 1, FINETUNE_TRAINS: []}}",
            "^finetune: finetune.run.unfreeze names nothing to train",
        ),
        (
            "joint: {bindings: {objective.Objective.curriculum: 0.5, objective.Objective.supervision: '@supervision.learned'}}",
            "^joint: objective.Objective.curriculum grows given weights; supervision.learned finds its own: use one of the two",
        ),
        (
            "warmup: {bindings: {objective.Objective.curriculum: 1.5}}",
            "objective.Objective.curriculum must be at least 0, at most 1, got 1.5",
        ),
        (
            "warmup: {bindings: {objective.Objective.bptt: '@recursion.truncated_gradient', recursion.truncated_gradient.last: 0}}",
            "recursion.truncated_gradient.last must be at least 1, got 0",
        ),
        (
            "controls: {bindings: {trained_on/objective.Objective.curriculum: -1.0}}",
            "curriculum must be at least 0, at most 1, got -1.0",
        ),
        (
            "warmup: {bindings: {optim.warmup_cosine.lr_warmup_steps: 4}}",
            "^warmup: optim.warmup_cosine.lr_warmup_steps is 4, and the run has 6 steps; .* set 3 or less",
        ),
        ("finetune: {bindings: {finetune.run.unfreeze: [trunk]}}", "^finetune: no module matches 'trunk'"),
        ("controls: {bindings: {controls.run.unfreeze: [slots]}}", "^controls: no module matches 'slots'; .*refiner.slots"),
    ],
)
def test_what_does_not_fit_is_told_with_its_stage(rehearse, line, message):
    with pytest.raises(ConfigError, match=message):
        rehearse(line)


@pytest.mark.parametrize(
    "line",
    ["joint: {bindings: {JOINT_FIT: '@loop.as_it_is', joint.run.unfreeze: []}}", "finetune: {bindings: {FINETUNE_TRAINS: []}}"],
)
def test_a_phase_that_is_off_may_train_nothing(rehearse, line):
    rehearse(line)


@pytest.mark.parametrize(
    ("line", "stage", "count"),
    [
        ("common: {bindings: {TAIL_LAYERS: 2}}", "joint", 10_123),
        ("common: {bindings: {TAIL_LAYERS: 0, joint.run.unfreeze: [refiner]}}", "joint", 3_915),
        ("warmup: {gin: [gin/sizes/base.gin]}", "warmup", 7_019),
        ("joint: {bindings: {joint.run.unfreeze: [refiner.slots, 'backbone.blocks.?.mlp*']}}", "joint", None),
        ("backbone: {bindings: {DIM: 32}}", "backbone", None),
        (
            "common: {bindings: {sudoku.Sudoku: {size: 9, clues: [30, 40], test_clues: [32]}, HEADLINE: t, DECODES: {}, "
            "MEASURES: {t: [test_32, 1.0]}}}",
            "backbone",
            None,
        ),
    ],
)
def test_a_setting_shows_in_the_sizes(rehearse, line, stage, count):
    plain, changed = rehearse(), rehearse(line)
    sizes = [sum(p.numel() for p in models[stage].parameters() if p.requires_grad) for models in (plain, changed)]
    assert sizes[1] == count if count else sizes[0] != sizes[1]


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_norms_count_where_they_are_trained(rehearse, stage):
    names = trained(rehearse(f"{stage}: {{bindings: {{{stage}.run.layer_norms: true}}}}")[stage])
    assert "backbone.norm.weight" in names


@pytest.mark.parametrize(
    "line",
    [
        "common: {bindings: {TAPS: [0]}}",
        "common: {bindings: {TAPS: [-2], REFINER: '@tapped.Tapped'}}",
        "common: {bindings: {TAPS: [0], REFINER: '@tapped.Tapped', tapped.Tapped.refiner: '@mlp_refiner.MLPRefiner'}}",
        "common: {bindings: {REFINER: '@tapped.Tapped', tapped.Tapped.layers: [-1]}}",  # above the split: read as it runs
        "common: {bindings: {TAPS: [0], REFINER: '@tapped.Tapped'}}\nwarmup: {bindings: {warmup.run.states: '@sources.live'}}",
        "common: {bindings: {TAPS: [0]}}\nwarmup: {bindings: {refiner.SlotRefiner.slots: [[low, tap 0, 3], [a, state, 3]]}}",
    ],
)
def test_taps_that_are_stored_or_run_may_be_read(rehearse, line):
    refiner = rehearse(line)["warmup"].refiner
    assert bool(refiner.taps) == ("Tapped" in line or "slots" in line)


# What evaluate would refuse after hours

MEASURED = {
    "HEADLINE: nothing": "evaluate: headline is 'nothing', which is none of the measures test_5, test_7",
    "MEASURES: {test_5: [test_5, 30]}": "evaluate.run.measures must be above 0, at most 1, got .*30",
    "MEASURES: {test_5: [test_5, 0.0]}": "evaluate.run.measures must be above 0",
    "MEASURES: {test_5: [test_6, 1.0]}": "there is no split 'test_6'; the corpus has train, validation, test_7, test_5",
    "DECODES: {test_5: [test_5, 8, 3, 600]}": "decodes, 'test_5': .*passes a multiple of blocks",
    "DECODES: {test_5: [test_5, 0, 1, 600]}": "evaluate.run.decodes must be at least 1",
    "DECODES: {x: [test, 8, 1, 600]}": "decodes, 'x': there is no split 'test'",
    "FORGETTING: [test_5, 15]": "evaluate.run.forgetting must be above 0, at most 1",
    "FORGETTING: [test, 0.15]": "forgetting: there is no split 'test'",
    "EVALUATION_BATCH: 0": "evaluate.run.batch_size must be at least 1, got 0",
    "evaluate.run.samples: 0": "evaluate.run.samples must be at least 1, got 0",
    "LIKELIHOOD: '@likelihood.Likelihood'": "likelihood: there is no split 'test'",
    "ANSWERS: '@answers.Answers'": "answers is for text corpora",
    "PARALLELISM: '@parallelism.Parallelism'": "parallelism: there is no split 'test'",
    "PARALLELISM: '@parallelism.Parallelism', parallelism.Parallelism: {split: test_5, results: '@answers.Answers()'}": (
        "parallelism.Parallelism.results is for text corpora"
    ),
    "PARALLELISM: '@parallelism.Parallelism', parallelism.Parallelism: {split: test_5, passes: [2, 2]}": "got 64 items and .2, 2.",
    "PARALLELISM: '@parallelism.Parallelism', parallelism.Parallelism: {split: test_5, passes: [0]}": "passes must be at least 1",
    "PARALLELISM: '@parallelism.Parallelism', parallelism.Parallelism: {split: test_5, others: {plain: '@sampling.Sampler()'}}": (
        "others: 'plain' is the curve of sampler"
    ),
    "BREADTH: '@breadth.Breadth', breadth.Breadth: {restarts: [4, 4]}": "restarts different positive numbers, got .*4, 4.",
    "BREADTH: '@breadth.Breadth', breadth.Breadth: {restarts: [0]}": "breadth.Breadth.restarts must be at least 1",
    "BREADTH: '@breadth.Breadth', breadth.Breadth: {steps: 1}": "breadth.Breadth.steps must be at least 2, at most 10000, got 1",
    "BREADTH: '@breadth.Breadth', breadth.Breadth: {noise: 0}": "breadth.Breadth.noise must be above 0, got 0",
    "BREADTH: '@breadth.Breadth', breadth.Breadth: {choices: {}}": "choices must name a rule",
    "BREADTH: '@breadth.Breadth', breadth.Breadth: {choices: {it: '@halting.by_change'}}": "halting.by_change",
    "BREADTH: 16": "evaluate.run.breadth",
}


@pytest.mark.parametrize(("binding", "match"), MEASURED.items(), ids=MEASURED)
def test_mistakes_of_the_evaluation_are_told_before_anything_is_trained(rehearse, binding, match):
    with pytest.raises(ConfigError, match=match):
        rehearse(f"evaluate: {{bindings: {{{binding}}}}}")


AUGMENT = "@grid_symmetries.grid_symmetries"


@pytest.mark.parametrize("lines", [
    (f"backbone: {{bindings: {{backbone.run.augment: '{AUGMENT}'}}}}",),
    (f"warmup: {{bindings: {{sources.live.augment: '{AUGMENT}', warmup.run.states: '@sources.live'}}}}",),
    (f"warmup: {{bindings: {{sources.remote.augment: '{AUGMENT}', warmup.run.states: '@sources.remote'}}}}",),
    (f"controls: {{bindings: {{sources.tokens.augment: '{AUGMENT}'}}}}",),
])  # fmt: skip
def test_other_puzzles_are_made_of_puzzles_alone(rehearse, monkeypatch, lines):
    assert rehearse(*lines)
    monkeypatch.setattr(Sudoku, "is_text", True)
    with pytest.raises(ConfigError, match=f"{lines[0].partition(':')[0]}: augment makes other grid puzzles of those of the corpus"):
        rehearse(*lines)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("sources.cached.augment", "sources.cached has no parameter 'augment'; known: "),
        ("sources.streamed.augment", "sources.streamed has no parameter 'augment'; known: "),
        ("sources.live.augment", "'sources.live.augment' is valid, but nothing that stage warmup builds uses it"),
        ("sources.tokens.augment", "'sources.tokens.augment'"),
    ],
)
def test_states_that_are_stored_are_of_no_other_puzzles(rehearse, setting, told):
    with pytest.raises(ConfigError) as error:
        rehearse(f"warmup: {{bindings: {{{setting}: '{AUGMENT}'}}}}")
    assert told in str(error.value) and "\n" not in str(error.value)


NO_STATES = {
    "objective.Objective.noise: '@carry_noise.CarryNoise()', REFINER: '@cascade.Cascade'": r"objective\.Objective\.noise needs",
    "objective.Objective.settling: '@fixed_point.FixedPoint()', REFINER: '@hybrid.Hybrid'": r"objective\.Objective\.settling needs",
    "objective.Objective.noise: '@carry_noise.CarryNoise()', REFINER: '@chunk_masking.ChunkMasking'": "choose another REFINER",
    "BREADTH: '@breadth.Breadth', REFINER: '@cascade.Cascade'": r"evaluate\.run\.breadth begins the recursion at noised states",
    "BREADTH: '@breadth.Breadth', REFINER: '@hybrid.Hybrid'": "choose another, or set BREADTH to None",
    "objective.Objective.noise: '@carry_noise.CarryNoise()', carry_noise.CarryNoise.start: -1": "start must be at least 0, got -1",
    "objective.Objective.settling: '@fixed_point.FixedPoint()', fixed_point.FixedPoint.weight: 0": "weight must be above 0, got 0",
    "objective.Objective.settling: '@carry_noise.CarryNoise()'": r"objective\.Objective\.settling",
}


@pytest.mark.parametrize(("bindings", "match"), NO_STATES.items(), ids=NO_STATES)
def test_noise_a_price_and_restarts_want_a_recursion_that_carries_states(rehearse, bindings, match):
    with pytest.raises(ConfigError, match=match) as error:
        rehearse(f"common: {{bindings: {{{bindings}}}}}")
    assert "\n" not in str(error.value)


def test_noise_and_a_price_go_with_every_other_setting(rehearse):
    own = "objective.Objective: {noise: '@carry_noise.CarryNoise()', settling: '@fixed_point.FixedPoint()'}"
    assert rehearse(f"common: {{bindings: {{{own}, BREADTH: '@breadth.Breadth', REFINER: '@recursive_core.RecursiveCore'}}}}")


CHECKPOINTED = "loop.fit.execution: '@execution.checkpointed'"
NO_TAIL = "TAIL_LAYERS: 0, joint.run.unfreeze: [refiner]"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            (f"common: {{bindings: {{{NO_TAIL}}}}}", f"warmup: {{bindings: {{{CHECKPOINTED}}}}}"),
            "^warmup: loop.fit.execution = @execution.checkpointed: a RefinedLM has no layers that could run once more; use @exec",
        ),
        (
            ("common: {bindings: {BACKBONE: '@recursive_lm.RecursiveLM', TAIL_LAYERS: 0, joint.run.unfreeze: [refiner]}}",
             f"backbone: {{bindings: {{{CHECKPOINTED}}}}}"),
            "^backbone: loop.fit.execution = @execution.checkpointed: a RecursiveLM has no layers",
        ),
        (
            (f"common: {{bindings: {{{NO_TAIL}, ADAPTER_FIT: '@without_recursion/loop.fit'}}}}",
             f"controls: {{bindings: {{without_recursion/{CHECKPOINTED}}}}}"),
            "^controls: loop.fit.execution = @execution.checkpointed: a RefinedLM has no layers",
        ),
        (
            ("common: {bindings: {REFINER: '@hybrid.Hybrid'}}",
             "joint: {bindings: {loop.fit.execution: '@execution.compiled'}}"),
            "^joint: loop.fit.execution = @execution.compiled: a Hybrid packs its tokens, .*; use @execution.eager",
        ),
    ],
)  # fmt: skip
def test_a_way_of_running_that_a_model_has_no_parts_for_is_told_before_training(rehearse, lines, message):
    with pytest.raises(ConfigError, match=message) as caught:
        rehearse(*lines)
    assert "\n" not in str(caught.value)


def test_a_way_of_running_that_fits_leaves_the_models_as_they_are(rehearse):
    models = rehearse(*(f"{stage}: {{bindings: {{{CHECKPOINTED}}}}}" for stage in ("backbone", "warmup", "joint")))
    assert not any("with_heads" in vars(module) for model in models.values() for module in model.modules())
    off = "finetune.run.steps: 0"  # which trains nothing
    assert rehearse(
        "common: {bindings: {BACKBONE: '@recursive_lm.RecursiveLM', TAIL_LAYERS: 0, joint.run.unfreeze: [refiner]}}",
        f"finetune: {{bindings: {{{off}, {CHECKPOINTED}}}}}",
    )


@pytest.mark.parametrize("heads", [0, -2])
@pytest.mark.parametrize("stage", ["backbone", "warmup"])
def test_no_heads_at_all_are_refused(rehearse, stage, heads):
    with pytest.raises(ConfigError, match=rf"{stage}.bindings.HEADS: .*heads must be at least 1, got {heads}"):
        rehearse(f"{stage}: {{bindings: {{HEADS: {heads}}}}}")


@pytest.mark.parametrize("draws", [0, -1])
def test_no_draws_at_all_are_refused(rehearse, draws):
    with pytest.raises(ConfigError, match=f"extract.run.draws must be at least 1, got {draws}"):
        rehearse(f"extract: {{bindings: {{DRAWS: {draws}}}}}")


# Answers are judged by the references' results


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """``judged(references)``: what a corpus of these answers is rehearsed to."""
    (tmp_path / "gsm8k").mkdir()
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))

    def judged(references, text="preset: gsm8k_smoke\ncommon: {bindings: {ANSWERS: '@answers.Answers'}}\n"):
        (tmp_path / "params.yaml").write_text(text)
        read = params.read(tmp_path / "params.yaml", SECTIONS)
        rows = [json.dumps({"question": f"{i}?", "answer": text}) + "\n" for i, text in enumerate(references)]
        (tmp_path / "gsm8k/test.jsonl").write_text("".join(rows))
        rehearsal.rehearse({stage: config.resolve(stage, read, root=ROOT).text for stage in NEEDED})

    yield judged
    gin.clear_config()


def test_references_without_any_result_are_told_before_training(judged):
    with pytest.raises(ConfigError, match="3 of the first 3 references hold no result by the pattern 'strict'"):
        judged(["the answer is A", "B", "C"])


def test_references_of_curves_over_few_passes_are_looked_at_too(judged):
    curves = "PARALLELISM: '@parallelism.Parallelism', parallelism.Parallelism.results: '@answers.Answers()'"
    message = r"^evaluate.run.parallelism: 2 of the first 2 references hold no result .*, or parallelism.Parallelism.results: null$"
    with pytest.raises(ConfigError, match=message):
        judged(["A", "B"], f"preset: gsm8k_smoke\ncommon: {{bindings: {{ANSWERS: null, {curves}}}}}\n")


def test_references_of_which_some_lack_a_result_are_counted(judged, capsys):
    judged(["#### 3", "four", "#### 5"])
    assert "configure: 1 of the first 3 references hold no result by the pattern 'strict'" in capsys.readouterr().err
    judged(["#### 3", "#### 5"])
    assert capsys.readouterr().err == ""


@pytest.fixture
def over_pretrained(tmp_path, monkeypatch):
    """``over_pretrained(bindings)``: what configure's rehearsal says on stderr of a tied causal model under the preset of Qwen3."""
    needs("transformers", "peft")
    checkpoints.tied(tmp_path)
    bpe.save(bpe.trained(("a b c",), 30).tokenizer, tmp_path / "tokenizer.json")

    def rehearsed(**common):
        path = str(tmp_path)
        small = {"HEADS": 2, "TAIL_LAYERS": 1, "DEVICE": "cpu", "pretrained.model.path": path, "pretrained.model.dtype": "fp32"}
        small |= {"jsonl.QuestionAnswers.sequence": 16}
        lines = {"preset": "gsm8k_qwen3", "common": {"bindings": {**small, **common}}}
        (tmp_path / "params.yaml").write_text(json.dumps(lines))
        read = params.read(tmp_path / "params.yaml", SECTIONS)
        return rehearsal.rehearse({stage: config.resolve(stage, read, root=ROOT).text for stage in NEEDED}, (30, 16))

    return rehearsed


def test_a_rate_for_new_weights_on_a_pretrained_model_is_warned_of(over_pretrained, capsys):
    over_pretrained()
    assert capsys.readouterr().err == ""
    over_pretrained(CONTROL_LR=3e-3)
    message = (
        "configure: controls trains the pretrained model at a learning rate of 0.003 (fit_backbone), meant for weights that begin"
    )
    assert capsys.readouterr().err.startswith(message)
    over_pretrained(TAIL_LR=1e-3)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (
            {"lora.Lora.targets": ["*.query_proj"]},
            r"^lora\.Lora\.targets: '\*\.query_proj' matches no linear layer .*; there are mlp\.down_proj, .*self_attn",
        ),
        ({"lora.Lora.targets": []}, "names nothing"),
        ({"lora.Lora.rank": 17}, r"lora\.Lora\.rank is 17, and '.*' has rank 16 itself; set 16 or less"),
    ],
)
def test_adapters_that_cannot_be_are_told_before_training(over_pretrained, bindings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        over_pretrained(**bindings)
    assert "\n" not in str(caught.value)


def test_without_peft_the_control_of_adapters_says_which_extra_and_can_be_left_out(over_pretrained, monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^LoRA needs peft: pip install 'slotloop\[lora\]', or set LORA_FIT = None"):
        over_pretrained()
    over_pretrained(LORA_FIT=None)


def test_adapters_in_a_built_in_model_are_refused(rehearse):
    with pytest.raises(ConfigError, match=r"^LoRA adapts pretrained models, and the backbone is a TinyLM; set LORA_FIT"):
        rehearse("common: {bindings: {LORA_FIT: '@adapted/loop.fit'}}")


ADAPTER = "ADAPTER_FIT: '@without_recursion/loop.fit'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("CONTROL_RATES: []", r"^controls\.run\.rates must name each rate once, and at least one, got \[\]; \(1\.0,\) = no search"),
        ("CONTROL_RATES: [0.5, 1.0, 0.5]", r"must name each rate once, and at least one, got \[0\.5, 1\.0, 0\.5\]"),
        (f"{ADAPTER}, adapter.Adapter.heads: 3", r"^controls: .*3"),
        (f"{ADAPTER}, without_recursion/objective.Objective.curriculum: -1.0", r"must be at least 0"),
        ("REFINER_LORA_FIT: '@with_refiner/loop.fit'", r"^LoRA adapts pretrained models, and the backbone is a TinyLM"),
        (f"{ADAPTER}, without_recursion/loop.fit.accumulation: 10", r"^controls: a step of 320 rows .*, and there will be 300"),
    ],
)
def test_controls_that_cannot_be_are_told_before_training(rehearse, line, message):
    with pytest.raises(ConfigError, match=message) as caught:
        rehearse(f"common: {{bindings: {{{line}}}}}")
    assert "\n" not in str(caught.value)


def test_the_size_of_the_control_without_recursion_is_no_setting(rehearse):
    with pytest.raises(ConfigError, match=r"adapter\.Adapter\.parameters.* as many parameters as warmup trains"):
        rehearse(f"controls: {{bindings: {{{ADAPTER}, adapter.Adapter.parameters: 5000}}}}")


def test_controls_that_are_on_and_fit_are_rehearsed(rehearse):
    models = rehearse(f"common: {{bindings: {{{ADAPTER}, CONTROL_RATES: [0.3, 1, 3]}}}}")
    assert set(models) == set(TRAINING)


def test_refiner_and_adapters_together_are_rehearsed_where_they_will_be(over_pretrained):
    on = {"REFINER_LORA_FIT": "@with_refiner/loop.fit", "LORA_FIT": None}
    over_pretrained(**on)
    above = {**on, "lora.Lora.targets": ["model.model.layers.0.*"]}
    with pytest.raises(ConfigError, match=r"lora\.Lora\.targets: 'model\.model\.layers\.0\.\*' matches no linear layer"):
        over_pretrained(**above)  # the trunk's, which are not there above it
    over_pretrained(**above, REFINER_LORA_STATES="@sources.tokens")


def test_an_approximate_prefix_that_evaluate_could_not_use_is_refused(judged, tmp_path):
    answers = {"ANSWERS": "@answers.Answers", "answers.Answers.prefix": "@approximate_prefix.approximate_prefix"}
    text = json.dumps({"preset": "gsm8k_smoke", "common": {"bindings": {**answers, "REFINER": "@hybrid.Hybrid"}}})
    with pytest.raises(ConfigError, match=r"answers.Answers.prefix approximates masked diffusion, and backbone or refiner cannot"):
        judged(["#### 1"], text)
    judged(["#### 1"], json.dumps({"preset": "gsm8k_smoke", "common": {"bindings": answers}}))


@pytest.mark.parametrize("causal", [False, True])
def test_settings_of_generate_are_those_of_the_model_that_answers(rehearse, tmp_path, causal):
    """A model that was exported elsewhere is of its own kind, whatever the preset trains."""
    (tmp_path / "export.json").write_text("{}")
    write_manifest(tmp_path / "backbone/model.json", {"kind": "backbone", "vocabulary": {"causal": causal}})
    refused = pytest.raises(ConfigError, match="a causal model writes token after token") if causal else nullcontext()
    with refused:
        rehearse(f"generate: {{bindings: {{generate.run.model: '{tmp_path}', sampling.Sampler.threshold: 0.9}}}}")
