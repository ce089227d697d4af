"""Every phase of a refiner that reads states of deeper layers: stored by extract, read live wherever the whole model runs."""

import json
from dataclasses import replace

import pytest
import torch

from components.objective.masking import whole
from pipeline.corpora.prepared import Prepared
from pipeline.data import sources
from pipeline.inference.generation import Generator
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model, load_refined
from stages.__main__ import main
from tests.conftest import TRAINING
from tests.stages.test_causal import PROMPTS, SPECIAL, checkpoint
from tests.support.causal import changed_by_a_token, plainly
from tests.support.over_checkpoint import run_over

BINDINGS = {
    "TAPS": [1, -3], "REFINER": "@tapped.Tapped", "jsonl.QuestionAnswers": {"special": SPECIAL}, "answers.Answers": {"items": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage; of three layers one is the tail."""
    folder = tmp_path_factory.mktemp("taps") / "run"
    return run_over(folder, "gsm8k_qwen3", checkpoint, ("configure", *TRAINING), BINDINGS)


def opened():
    """Stored and live states of the training rows, and rows of them."""
    backbone = Backbone("data/backbone")
    live = sources.live(
        "train", backbone=backbone, prepared="data/prepared", masking=whole, seed=0, tail_layers=1, taps=(1, 0), draws=1,
        dtype="fp32", runtime=Runtime("cpu"),
    )  # fmt: skip
    cached = sources.cached("train", backbone=backbone, shards="data/shards")
    return [source.batch(torch.arange(8), torch.zeros(8, dtype=torch.long)) for source in (cached, live)]


def test_every_phase_trains_with_the_taps(inside):
    for phase in ("warmup", "joint"):
        architecture = json.loads((inside / f"outputs/{phase}/model.json").read_text())["refiner"]
        assert architecture["core"] == "Tapped" and architecture["layers"] == [1, -3]
    trained = load_model("outputs/warmup", Backbone("data/backbone"), "warmup")
    assert trained.refiner.project.weight.any() and trained.taps == {1: 1, -3: 0} and trained.stored_taps == ()
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]
    assert len({evaluated[name]["nll"]["mean"] for name in ("frozen", "warmup", "joint", "control_lora")}) == 4


def test_stored_states_are_those_of_the_live_trunk_bit_for_bit(inside):
    cached, live = opened()
    there = cached.attention
    assert cached.tap_layers == live.tap_layers == (1, 0) and torch.equal(cached.tokens, live.tokens)
    for ours, expected in ((cached.hidden, live.hidden), *((cached.tap(layer), live.tap(layer)) for layer in (1, 0))):
        assert torch.equal(ours[there], expected[there])


@pytest.mark.parametrize("phase", ["warmup", "joint"])
def test_a_phase_over_its_shards_is_the_whole_model_over_the_tokens_bit_for_bit(inside, phase):
    backbone, (cached, _) = Backbone("data/backbone"), opened()
    tail, full = (load_refined(f"outputs/{phase}", backbone, phase, layer) for layer in (2, 0))
    assert tail.stored_taps == (1, 0) and full.live_taps == (1, 0)
    with torch.no_grad():
        ours, expected = tail.states(cached), full.states(replace(cached, hidden=None, taps=None, tap_layers=()))
    assert torch.equal(ours[cached.attention], expected[cached.attention])


def test_what_is_to_come_shows_in_no_tap(inside):
    changed = changed_by_a_token(load_model("outputs/joint", Backbone("data/backbone"), "joint"), Prepared("data/prepared"), 20)
    assert changed[:20].max() == 0 and changed[20] > 0


def test_answers_from_a_cache_are_those_of_every_text_read_anew(inside):
    generator = Generator("outputs/joint", length=6)
    canvases = [generator.prompts.canvas(prompt, 6) for prompt in PROMPTS]
    batch = generator._batch(canvases)
    assert generator.model.key_value_cache() is not None
    given = {"end_id": generator.prompts.end_id, "known": generator.prompts.known, "pad_id": generator.vocabulary.pad_id}
    last = plainly(
        generator.model, batch.tokens, generator.vocabulary.mask_id, generator.sampler, attention=batch.attention, **given
    )
    assert [answer.text for answer in generator(PROMPTS)] == [answer.text for answer in generator._answers(last, canvases)]


def test_an_exported_model_answers_as_it_did(inside, tmp_path, capsys):
    assert main(["export", "--model=outputs/joint", f"--out={tmp_path / 'alone'}"]) == 0
    alone, before = (Generator(str(folder), length=5)(PROMPTS[0]) for folder in (tmp_path / "alone", "outputs/joint"))
    assert (alone.text, alone.confidence) == (before.text, before.confidence)


def test_a_trunk_that_hands_on_no_taps_stops_a_phase_in_one_line(inside, tmp_path, capsys):
    settings = ["warmup.run.states=@sources.live", "sources.live.taps=[]", f"--out={tmp_path / 'warmup'}"]
    assert main(["warmup", *settings]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "warmup: the refiner reads the states that enter layer 1" in line and "those of no layer come" in line
