"""Plans beside what the stages then do: the same numbers from prepared data, near them from settings alone, and nothing runs."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import gin
import pytest
import torch

from components.caching import gain
from pipeline.command_line import SECTIONS
from pipeline.errors import ConfigError, DataError
from pipeline.planning import plan as planning
from pipeline.planning.cost import Memory, Training
from pipeline.planning.cost_model import CostModel
from pipeline.settings import config, params
from pipeline.training import step_operations
from tests.conftest import ROOT, run_stages, workspace
from tests.support.checkpoints import LLADA, LLADA_MOE
from tests.support.optional import needs

STAGES = ["backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate"]
FOLDERS = {"backbone": "data/backbone", "warmup": "outputs/warmup", "joint": "outputs/joint"}
LIVE = {"warmup.run.states": "@sources.live"}


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory):
    """``plan_of(preset, folder, section={key: value})``: the plan of a preset so changed, as it is told in a folder."""
    file = tmp_path_factory.mktemp("plans") / "params.yaml"

    def plan_of(preset="smoke", folder=file.parent, processes=1, **sections):
        file.write_text(json.dumps({"preset": preset, **{name: {"bindings": held} for name, held in sections.items()}}))
        texts = config.resolve_all(SECTIONS, params.read(file, SECTIONS), root=ROOT)
        with contextlib.chdir(folder):
            return planning.plan(texts, processes)

    yield plan_of
    gin.clear_config()


@pytest.fixture(scope="module")
def plan(plan_of, finished):
    """The smoke preset's where its data is prepared."""
    return plan_of(folder=finished)


@pytest.fixture(scope="module")
def changed(plan_of, finished):
    """The same with other settings of each phase; a machine that is not here."""
    state, before = torch.get_rng_state(), sorted(map(str, finished.rglob("*")))
    found = plan_of(
        folder=finished, common={"THREADS": 7, "DEVICE": "cuda"}, warmup={**LIVE, "ACCUMULATION": 2, "BATCH": 16},
        joint={"objective.Objective.activations": "@activations.checkpoint"}, finetune={"finetune.run.steps": 3},
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() != 7
    assert sorted(map(str, finished.rglob("*"))) == before  # nothing is written
    return found


@pytest.fixture(scope="module")
def guess(plan_of):
    """The smoke preset's where nothing is prepared."""
    return plan_of()


@pytest.fixture
def only_evaluated(monkeypatch):
    """Plans in which a training step takes one operation and one byte, unreckoned: for tests that look at evaluate alone."""
    monkeypatch.setattr(CostModel, "_step", lambda *_: (1, 1))
    monkeypatch.setattr(CostModel, "control", lambda *_, **__: Training(Memory(1), 0, 0.0, 0.0))


def of(plan, stage):
    return next(cost for cost in plan.costs if cost.stage == stage)


def metrics(folder, name):
    return json.loads((folder / name / "metrics.json").read_text())


# From prepared data


def test_every_stage_that_computes_has_its_costs(plan):
    assert [cost.stage for cost in plan.costs] == STAGES and plan.assumed == [] and plan.live == []


@pytest.mark.parametrize("stage", FOLDERS)
def test_operations_and_parameters_are_those_that_training_tells(plan, finished, stage):
    told, cost = metrics(finished, FOLDERS[stage]), of(plan, stage)
    assert (cost.steps, cost.flops_per_step) == (told["steps"], told["flops_per_step"])
    assert cost.flops == told["steps"] * told["flops_per_step"] > 0
    assert (cost.loaded, cost.trained) == (told["parameters"]["total"], told["parameters"]["trainable"])


def test_controls_spend_what_they_are_compared_with(plan, finished):
    told = [metrics(finished, f"outputs/controls/{name}") for name in ("backbone", "warmup")]
    spent = sum(run["steps"] * run["flops_per_step"] for run in told)
    half_a_step = sum(run["flops_per_step"] for run in told) / 2  # of each: they take whole steps
    assert of(plan, "controls").flops == pytest.approx(spent, abs=half_a_step)
    assert of(plan, "controls").trained == sum(run["parameters"]["trainable"] for run in told)


def test_the_control_without_recursion_and_a_search_are_planned(plan_of, plan, finished):
    on = plan_of(folder=finished, common={"ADAPTER_FIT": "@without_recursion/loop.fit", "CONTROL_RATES": [0.5, 1.0, 2.0]})
    warmup, joint, controls, without = of(plan, "warmup"), of(plan, "joint"), of(on, "controls"), of(plan, "controls")
    assert controls.flops == 3 * (without.flops + warmup.flops) == 3 * (2 * warmup.flops + 2 * joint.flops)
    adapter = controls.trained - without.trained
    assert warmup.trained - 33 < adapter <= warmup.trained and controls.parameters - without.parameters == adapter
    assert controls.memory == without.memory + 4 * warmup.trained  # the largest's weights, to begin from again
    evaluate, plain = of(on, "evaluate"), of(plan, "evaluate")
    assert evaluate.loaded - plain.loaded == adapter
    assert 0 < evaluate.beside - plain.beside < plain.beside / 2  # one model of five more, of one step


def test_depths_take_what_answers_of_so_many_steps_take(plan_of, plan, finished):
    def of_depths(*depths):
        return of(plan_of(folder=finished, evaluate={"DEPTHS": depths}), "evaluate").beside - of(plan, "evaluate").beside

    told = metrics(finished, "outputs/evaluate")["models"]
    answers = [told[name]["flops_per_answer"] for name in ("warmup", "joint", "control_warmup")]
    assert of_depths(4) == pytest.approx(told["warmup"]["exact"]["n"] * sum(answers), rel=1e-4)
    four, eight, sixteen, reading = of_depths(4), of_depths(8), of_depths(16), of_depths(4, 16) - of_depths(16)
    assert sixteen - eight == pytest.approx(2 * (eight - four), rel=1e-4) and 0 < reading < eight - four


def test_restarts_take_what_so_many_recursions_take_over_one_trunk(plan_of, plan, finished):
    def of_restarts(*restarts, steps=None):
        own = {"breadth.Breadth.restarts": restarts, "breadth.Breadth.steps": steps, "BREADTH": "@breadth.Breadth"}
        return of(plan_of(folder=finished, evaluate=own), "evaluate").beside - of(plan, "evaluate").beside

    told = metrics(finished, "outputs/evaluate")["models"]
    answers = [told[name]["flops_per_answer"] for name in ("warmup", "joint", "control_warmup")]
    assert of_restarts(1) == pytest.approx(told["warmup"]["exact"]["n"] * sum(answers), rel=1e-4)
    one, two, five = of_restarts(1), of_restarts(1, 2), of_restarts(5)
    assert five - two == pytest.approx(3 * (two - one), rel=1e-4) and 0 < two - one < one
    assert of_restarts(2, steps=8) - of_restarts(1, steps=8) == pytest.approx(2 * (two - one), rel=0.1)


def test_the_cache_is_as_large_as_what_extract_writes(plan, finished):
    told, cost = metrics(finished, "data/shards"), of(plan, "extract")
    beside = told["bytes"] - cost.disk  # headers of tars and blocks, and uids: fixed parts of small shards
    assert cost.disk == told["tokens"] * (16 * 4 + 13) and 0 < beside < 0.05 * told["bytes"]


def test_epochs_are_those_of_the_rows_that_are_there(plan, finished):
    rows = json.loads((finished / "data/prepared/manifest.json").read_text())["splits"]["train"]["examples"]
    assert plan.examples == rows and of(plan, "warmup").epochs == 6 * 32 / rows
    assert plan.epochs == pytest.approx(10 * 32 / rows) and plan.draws == 2


def test_the_gain_is_reckoned_from_what_was_counted(plan):
    warmup, joint = of(plan, "warmup"), of(plan, "joint")
    assert plan.step == pytest.approx((warmup.flops + joint.flops) / (10 * 32))
    tokens, dim, layers = 16, 16, 1
    assert plan.trunk == layers * (2 * tokens * (4 + 8) * dim**2 + 4 * tokens * tokens * dim)
    assert plan.gain == gain(plan.trunk, plan.step, 2, plan.epochs) < 1  # two draws, and hardly more than one epoch
    assert of(plan, "extract").beside == plan.trunk * (2 * plan.examples + 40)


def test_memory_holds_weights_and_what_training_adds(plan):
    warmup, joint, evaluate = (of(plan, stage) for stage in ("warmup", "joint", "evaluate"))
    assert joint.memory > warmup.memory > 4 * (warmup.loaded + 4 * warmup.trained)  # joint trains more
    own = 2 * warmup.trained + joint.trained + of(plan, "backbone").loaded  # the controls': warmup again, and a whole backbone
    assert evaluate.loaded == of(plan, "backbone").loaded + own  # finetune is off
    states = 30 * 16 * 16  # entering the split, of a batch
    assert evaluate.memory == pytest.approx(4 * (evaluate.loaded + states), rel=0.01)


def test_evaluation_runs_the_trunk_once_for_all_whose_trunk_it_is(plan, plan_of, finished, only_evaluated):
    """At 2 measures of 30 examples each: every model above the split, a finetuned one whole."""

    def work(*names, steps=0):
        models = {"evaluate.run.models": {name: f"outputs/{name}" for name in names}, "DECODES": {}}
        return of(plan_of(folder=finished, evaluate=models, finetune={"finetune.run.steps": steps}), "evaluate").beside

    alone, two, three = work(), work("warmup"), work("warmup", "joint")
    assert three - two == two - alone > 0
    assert work("finetune", steps=3) == two + 60 * plan.trunk and work("joint", "finetune", steps=3) == three + 60 * plan.trunk


def test_microbatches_make_up_the_same_step_in_less_memory(plan, changed):
    whole, parts = of(plan, "warmup"), of(changed, "warmup")
    assert (parts.flops_per_step, parts.epochs) == (whole.flops_per_step, whole.epochs)
    assert parts.memory - 4 * of(plan, "backbone").loaded < whole.memory  # beside a trunk that runs live


def test_a_live_trunk_is_added_to_the_phase_that_runs_it(plan, changed):
    whole, live = of(plan, "warmup"), of(changed, "warmup")
    assert changed.live == ["warmup"] and changed.trunk == plan.trunk
    assert live.beside - whole.beside == plan.trunk * (6 * 32 + 2 * 40)  # the steps' examples, and two validations'
    assert live.memory - 4 * of(plan, "backbone").loaded > 4 * (whole.loaded + 4 * whole.trained)  # the trunk's weights beside
    assert live.flops == whole.flops  # what metrics.json tells: the trunk is no part of a step


def test_a_trunk_in_another_process_takes_nothing_of_the_phase_that_asks_it(plan_of, plan, finished):
    remote = plan_of(folder=finished, warmup={"warmup.run.states": "@sources.remote"})
    assert remote.live == ["warmup"] and of(remote, "warmup") == replace(of(plan, "warmup"), read=0)
    assert remote.wire == plan.wire == 16 * 16 * 4  # sixteen tokens of width sixteen, float32


def test_recomputation_takes_more_operations_and_less_memory(plan, changed):
    assert of(changed, "joint").flops > of(plan, "joint").flops and of(changed, "joint").memory < of(plan, "joint").memory


def test_finetuning_is_told_when_it_is_on(plan, changed):
    cost = of(changed, "finetune")
    assert cost.steps == 3 and cost.flops == 3 * cost.flops_per_step > 0 and cost.trained == cost.loaded == cost.parameters
    assert of(plan, "finetune").flops == 0 and of(changed, "evaluate").loaded > of(plan, "evaluate").loaded


# From settings alone


def test_without_data_its_settings_tell_nearly_the_same(plan, guess):
    assert len(guess.assumed) == 1 and guess.assumed[0].startswith("data/prepared is not there yet: ")
    for stage in STAGES:
        known, cost = of(plan, stage), of(guess, stage)
        assert (cost.parameters, cost.trained, cost.loaded, cost.steps, cost.epochs, cost.disk) == (
            known.parameters, known.trained, known.loaded, known.steps, known.epochs, known.disk
        )  # fmt: skip
        assert cost.flops == pytest.approx(known.flops, rel=0.01) and cost.beside == pytest.approx(known.beside, rel=0.05)


def test_other_settings_and_data_that_is_not_of_them(plan_of, guess, finished):
    other = plan_of(
        folder=finished, prepare={"sudoku.Sudoku.train": 500}, extract={"STATE_DTYPE": "int8", "DRAWS": 3},
        warmup={"objective.Objective.supervision": "@supervision.learned"}, joint={"objective.Objective.curriculum": 0.5},
    )  # fmt: skip
    assert other.examples == 500 and "data/prepared was prepared with other settings" in other.assumed[0]
    assert of(other, "extract").disk == (3 * 500 + 40) * 16 * (16 + 4 + 13) and other.draws == 3
    assert of(other, "warmup").flops == pytest.approx(of(guess, "warmup").flops, rel=0.01)
    assert of(other, "joint").flops < 0.99 * of(guess, "joint").flops  # at first few steps are supervised


@pytest.mark.parametrize("taps", [[0], [-2, 0]])
def test_taps_take_as_much_disk_as_the_split_each(plan_of, taps):
    common = {"LAYERS": 3}
    plain = plan_of(common=common)
    stored, read = (plan_of(common={**common, "TAPS": taps, **more}) for more in ({}, {"REFINER": "@tapped.Tapped"}))
    tokens = (2 * 300 + 40) * 16
    assert of(stored, "extract").disk == of(read, "extract").disk == of(plain, "extract").disk + len(taps) * tokens * 16 * 4
    assert of(stored, "warmup").flops == of(plain, "warmup").flops < of(read, "warmup").flops
    assert of(read, "warmup").trained == of(plain, "warmup").trained + len(taps) * (16 + 16 * 16)
    assert of(read, "extract").beside == of(plain, "extract").beside


def test_a_model_whose_work_depends_on_the_tokens_says_so(plan_of, guess):
    found = plan_of(warmup={"REFINER": "@hybrid.Hybrid"}, extract={"STATE_DTYPE": "bf16"})
    told = [text.partition(":")[0] for text in found.assumed]
    assert told == ["data/prepared is not there yet", "warmup", "joint", "controls", "evaluate"] and found.step == 0
    assert of(found, "warmup").flops == 0 and of(found, "warmup").epochs == of(guess, "warmup").epochs
    assert of(found, "extract").disk == (2 * 300 + 40) * 16 * (2 * 16 + 13)


def test_more_rows_a_step_than_there_are_is_refused(plan_of):
    with pytest.raises(ConfigError, match=r"warmup: a step of 512 rows .* examples, and there will be 300"):
        plan_of(common={"BATCH": 512})


# Text, padded and in buckets


@pytest.mark.slow
def test_operations_on_padded_text_are_those_that_training_tells(tmp_path, monkeypatch, plan_of):
    folder = workspace(tmp_path / "text", "gsm8k_smoke")
    (folder / "raw/gsm8k").mkdir(parents=True)
    for name, n in (("train", 60), ("test", 6)):
        lines = [{"question": f"What is {i} + 1?", "answer": "so " * (i % 30) + str(i + 1)} for i in range(n)]
        (folder / f"raw/gsm8k/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
    common = {"BUCKETS": [16, 32], "VALIDATE_EVERY": 2, "jsonl.QuestionAnswers.sequence": 48, "ANSWERS": None}
    (folder / "params.yaml").write_text(json.dumps({"preset": "gsm8k_smoke", "common": {"bindings": common}}))
    run_stages(folder, ("prepare", "backbone", "extract", "warmup"))
    found = plan_of("gsm8k_smoke", folder, common=common)
    for stage in ("backbone", "warmup"):
        told = metrics(folder, FOLDERS[stage])
        assert of(found, stage).flops_per_step == told["flops_per_step"]
        assert of(found, stage).loaded == told["parameters"]["total"]
    assert of(found, "extract").disk == metrics(folder, "data/shards")["tokens"] * (16 * 2 + 13)


# Several processes


def test_processes_that_share_layers_out_hold_less_and_those_that_do_not_as_much(plan_of, plan, finished):
    sharing = {"ACCUMULATION": 2, "loop.fit.sharding": "@sharding.fully_sharded"}
    shared, alone = (plan_of(folder=finished, processes=n, common=sharing) for n in (2, 1))
    replicated = plan_of(folder=finished, processes=2, common={"ACCUMULATION": 2})
    for stage in ("backbone", "controls"):
        assert of(shared, stage).memory <= of(replicated, stage).memory <= of(alone, stage).memory
    assert of(shared, "backbone").memory < of(replicated, "backbone").memory  # the largest control trains no layer
    assert of(shared, "warmup").memory == of(replicated, "warmup").memory  # nothing of it can be shared out
    assert [cost.flops for cost in shared.costs] == [cost.flops for cost in alone.costs]


def test_what_is_read_and_sent_is_planned(plan_of, plan, finished):
    """States of as many tokens as the steps see, 77 bytes each; gradients and sums to the other process, and nothing alone."""
    warmup = of(plan, "warmup")
    assert warmup.read == warmup.steps * 32 * 16 * (16 * 4 + 13) and of(plan, "backbone").read == of(plan, "finetune").read == 0
    assert not any(cost.sent for cost in plan.costs)
    several = plan_of(folder=finished, processes=2, common={"ACCUMULATION": 2})
    for stage in ("backbone", "warmup", "joint"):
        cost = of(several, stage)
        assert cost.sent == cost.steps * 4 * cost.trained, stage
    backbone, controls = of(several, "backbone"), of(several, "controls")
    assert 0.5 < (controls.sent / controls.flops) / (backbone.sent / backbone.flops) < 2  # most of it trains the backbone on
    assert of(plan, "controls").read == pytest.approx(of(plan, "joint").read, rel=0.3)  # of warmup, continued for as much compute


def test_controls_hold_what_the_largest_of_them_holds(plan):
    """Here warmup, continued: it learns from states as warmup does."""
    assert of(plan, "controls").parts == of(plan, "warmup").parts


def test_matrices_that_are_wanted_whole_are_refused_where_layers_are_shared_out(plan_of, finished):
    sharing = {"ACCUMULATION": 2, "loop.fit.sharding": "@sharding.fully_sharded"}
    for more, said in (
        ({"BACKBONE_OPTIMIZER": "@optim.muon"}, "Muon needs whole ones"),
        ({"CONTROL_RATES": [0.5, 1.0]}, "asks for 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan_of(folder=finished, processes=2, common={**sharing, **more})
        plan_of(folder=finished, common={**sharing, **more})  # alone a process holds all


def test_the_parts_of_memory_are_those_that_training_takes(plan_of, plan, finished):
    for stage in ("backbone", "warmup", "joint"):
        cost = of(plan, stage)
        parts, trained = cost.parts, 4 * cost.trained
        assert (parts.gradients, parts.moments, parts.average) == (trained, 2 * trained, trained), stage
        assert parts.weights >= 4 * cost.loaded and parts.batch > 0 == parts.gathered == parts.trunk == cost.host
    sharing = {"ACCUMULATION": 2, "loop.fit.sharding": "@sharding.fully_sharded", "runtime.Runtime.device": "cuda"}
    shared = of(plan_of(folder=finished, processes=2, common=sharing), "backbone")
    whole = of(plan, "backbone")
    assert shared.parts.moments < whole.parts.moments and shared.parts.gathered > 0
    assert 4 * whole.trained < shared.host + shared.parts.weights  # on the host of a GPU models are put together


def test_some_stages_can_be_planned_alone(finished, plan):
    with contextlib.chdir(finished):
        texts = config.resolve_all(SECTIONS, params.read(finished / "params.yaml", SECTIONS), root=ROOT)
        found = planning.memory_of(["joint", "controls"], texts, 1)
    assert found == {stage: of(plan, stage).memory for stage in ("joint", "controls")}


def test_processes_that_cannot_share_the_microbatches_are_refused(plan_of, finished):
    with pytest.raises(
        ConfigError, match=r"backbone: 2 processes cannot share loop.fit.accumulation = 1 microbatches evenly; set ACC"
    ):
        plan_of(folder=finished, processes=2)


# Pretrained


@pytest.fixture
def pretrained(plan_of, tmp_path, monkeypatch):
    """``pretrained(config.json)``: the plan over LLaDA of that shape. No weights are there."""
    needs("transformers", "peft")
    from pipeline.text import tokenizer as bpe

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(step_operations, "STEPS", 1)  # every row is as long here
    monkeypatch.setattr(step_operations, "SEQUENCES", 1)
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        lines = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(40)]
        (tmp_path / f"gsm8k/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    encoding = bpe.trained((f"What is {i} + 1?" for i in range(40)), 280)
    bpe.save(encoding.tokenizer, tmp_path / "tokenizer.json")

    def pretrained(sizes, path=".", preset="gsm8k_llada", **common):
        (tmp_path / "config.json").write_text(json.dumps(sizes))
        special = {"end": "<end>", "pad": "<pad>"} | ({} if preset == "gsm8k_qwen3" else {"mask": "<mask>"})
        text = {"tokenizer": ".", "special": special, "sequence": 32}
        small = {"HEADS": 2, "TAIL_LAYERS": 1, "RECURSION_STEPS": 2, "ACCUMULATION": 1}  # each step and microbatch is counted
        small |= {"pretrained.model.path": path, "jsonl.QuestionAnswers": text}
        return plan_of(preset, tmp_path, common={**small, **common})

    return pretrained


def test_a_pretrained_model_is_planned_from_its_configuration_alone(pretrained):
    found = pretrained({**LLADA, "vocab_size": 400, "embedding_size": 400})
    layer, ends = 4 * 16**2 + 3 * 16 * 24 + 2 * 16, 2 * 400 * 16 + 16
    extract, warmup, joint, evaluate = (of(found, stage) for stage in ("extract", "warmup", "joint", "evaluate"))
    assert extract.loaded == 3 * layer + ends and warmup.loaded - warmup.trained == layer + ends
    assert joint.trained == warmup.trained + layer and joint.parameters == warmup.trained + extract.loaded
    assert extract.memory > 2 * extract.loaded  # two bytes a weight
    assert warmup.memory > 2 * (layer + ends) + 4 * 5 * warmup.trained
    assert joint.memory > 2 * ends + 4 * 5 * joint.trained  # its layer is float32 while it is trained, as its moments and average
    states = 2 * 8 * 32 * 16  # entering the split, of a batch, in two bytes
    own = 4 * 2 * warmup.trained + 4 * warmup.trained + 2 * (evaluate.loaded - extract.loaded - 3 * warmup.trained)
    assert evaluate.memory == pytest.approx(2 * extract.loaded + own + states, rel=0.01)  # three refiners, in float32
    assert found.trunk == 2 * (2 * 32 * (layer - 2 * 16) + 4 * 32 * 32 * 16)  # two layers, 32 tokens
    assert of(found, "backbone").steps == 0 and of(found, "backbone").flops == 0
    assert extract.disk == 32 * (16 * 2 + 13) * (2 * 38 + 2) and not Path("model.safetensors").exists()


def test_an_answer_of_a_causal_model_is_read_once_whatever_its_passes(pretrained, only_evaluated):
    sizes = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 16, "num_hidden_layers": 3,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "vocab_size": 400,
             "max_position_embeddings": 64}  # fmt: skip
    few, many, none = (
        of(pretrained(sizes, preset="gsm8k_qwen3", **{"LIKELIHOOD": None}, **answers), "evaluate").beside
        for answers in ({"answers.Answers.passes": 1}, {"answers.Answers.passes": 64}, {"ANSWERS": None})
    )
    assert none < few == many


def test_curves_over_few_passes_are_planned(pretrained):
    """Each pass, and two runs of the model where it is guided."""
    sizes, alone = {**LLADA, "vocab_size": 400, "embedding_size": 400}, {"ANSWERS": None, "LIKELIHOOD": None, "DECODES": {}}

    def work(**settings):
        return of(pretrained(sizes, **alone, **settings), "evaluate").beside

    def curve(passes, **settings):
        own = {"parallelism.Parallelism.items": 2, "parallelism.Parallelism.passes": passes}
        return work(PARALLELISM="@parallelism.Parallelism", **own, **settings) - none

    none = work()
    one = curve([1])
    guided = {"parallelism.Parallelism.sampler": "@sampling.Sampler()", "sampling.Sampler.guidance": 1.0}
    assert one > 0 and curve([1, 4, 8]) == 13 * one and curve([3], **guided) == 2 * 3 * one


def test_adapters_are_planned_beside_the_backbone_trained_on(pretrained):
    sizes, few = {**LLADA, "vocab_size": 400, "embedding_size": 400}, {"CONTROL_TRAINS": ["model.model.layers.2.mlp.up_proj"]}
    on, off = pretrained(sizes, **few), pretrained(sizes, **few, LORA_FIT=None)
    warmup, joint, controls, without = of(on, "warmup"), of(on, "joint"), of(on, "controls"), of(off, "controls")
    each = 3 * (4 * 2 * 16 + 3 * (16 + 24))  # parameters of a rank
    nearest = min((rank * each for rank in range(1, 17)), key=lambda n: abs(n - warmup.trained))
    assert (controls.trained - without.trained, controls.loaded - without.loaded) == (nearest, nearest)
    assert controls.flops - without.flops == warmup.flops + joint.flops
    assert controls.memory > without.memory  # which here trains one layer on, where adapters take gradients all the way down
    linear = 3 * (4 * 16**2 + 3 * 16 * 24)
    evaluate, plain = of(on, "evaluate"), of(off, "evaluate")
    assert evaluate.loaded - plain.loaded == linear and evaluate.memory - plain.memory == 2 * linear  # merged
    assert evaluate.beside > plain.beside


def test_refiner_and_adapters_together_are_planned(pretrained):
    sizes = {**LLADA, "vocab_size": 400, "embedding_size": 400}
    few = {"LORA_FIT": None, "lora.Lora.rank": 2}
    off = pretrained(sizes, **few)
    warmup, joint, without = of(off, "warmup"), of(off, "joint"), of(off, "controls")
    for states, layers in (("@sources.cached", 1), ("@sources.tokens", 3)):
        on = pretrained(sizes, **few, REFINER_LORA_STATES=states, REFINER_LORA_FIT="@with_refiner/loop.fit")
        adapters, controls = 2 * layers * (4 * 2 * 16 + 3 * (16 + 24)), of(on, "controls")
        assert controls.trained - without.trained == controls.loaded - without.loaded == warmup.trained + adapters
        assert controls.flops - without.flops == joint.flops
        merged = layers * (4 * 16**2 + 3 * 16 * 24)
        assert of(on, "evaluate").loaded - of(off, "evaluate").loaded == warmup.trained + merged
        assert of(on, "finetune") == of(off, "finetune") and of(on, "evaluate").beside > of(off, "evaluate").beside


def test_a_mixture_of_experts_is_planned_in_any_precision(pretrained):
    half, whole = (pretrained({**LLADA_MOE, "vocab_size": 400}, **{"pretrained.model.dtype": dtype}) for dtype in ("bf16", "fp32"))
    for stage in STAGES:
        narrow, wide = of(half, stage), of(whole, stage)
        assert replace(narrow, parts=Memory()) == replace(wide, parts=Memory()), stage
        if not narrow.steps and stage != "controls":  # where so small a model is trained, float32 copies of bf16 logits are more
            assert narrow.memory < wide.memory, stage
    assert half.trunk == whole.trunk > 0 and of(whole, "joint").flops > 0
    assert of(whole, "extract").memory - of(half, "extract").memory > 2 * of(whole, "extract").loaded  # two more bytes a weight


def test_the_configuration_has_to_be_there(pretrained):
    with pytest.raises(DataError, match=r"nobody/nothing is not on this machine and the hub cannot be reached .* hf download"):
        pretrained(LLADA, path="nobody/nothing")
