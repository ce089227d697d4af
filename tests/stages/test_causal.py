"""Every phase over a causal model, shaped as Qwen3 is and tiny: by the preset of the real one, its sizes overridden."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from components.inference.answers import Answers
from components.inference.approximate_prefix import approximate_prefix
from components.inference.halting import by_change
from components.inference.sampling import Sampler
from pipeline.corpora.prepared import Prepared
from pipeline.data.reader import ShardReader
from pipeline.errors import ConfigError
from pipeline.evaluation.answering import generated
from pipeline.inference.generation import Generator, _identity
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model
from pipeline.progress import Progress
from pipeline.text import tokenizer as bpe
from stages.__main__ import main
from tests.conftest import TRAINING
from tests.support.causal import changed_by_a_token, plainly
from tests.support.optional import needs
from tests.support.over_checkpoint import answer_nll, run_over

transformers = pytest.importorskip("transformers")
needs("peft")
SPECIAL = {"end": "<end>", "pad": "<pad>"}
BINDINGS = {"jsonl.QuestionAnswers": {"special": SPECIAL}, "answers.Answers": {"items": 4}}


def checkpoint(folder, encoding):
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=24,
        vocab_size=encoding.size, max_position_embeddings=64,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    bpe.save(encoding.tokenizer, folder / "tokenizer.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace after every stage."""
    folder = tmp_path_factory.mktemp("causal") / "run"
    return run_over(folder, "gsm8k_qwen3", checkpoint, ("configure", *TRAINING), BINDINGS)


def test_every_phase_trains_and_the_answer_is_measured(inside):
    for phase, steps in (("warmup", 4), ("joint", 3)):
        assert json.loads((inside / f"outputs/{phase}/metrics.json").read_text())["steps"] == steps
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]
    assert len({evaluated[name]["nll"]["mean"] for name in ("frozen", "warmup", "joint", "control_lora")}) == 4
    assert json.loads((inside / "data/backbone/model.json").read_text())["selfcheck"]["causal"]


def test_one_draw_holds_every_token_of_an_answer(inside):
    split, shards = Prepared("data/prepared").split("train"), ShardReader("data/shards")
    assert shards.index["draws"] == 1
    assert sum(int(shards.read(shards.rows("train", 0), 48)["masked"].sum()) for _ in range(1)) == int(split.response.sum())


def test_the_frozen_loss_is_what_the_library_computes(inside):
    """Mean over answers of the mean over their tokens of -log p(next token), from its own labels."""
    model = transformers.Qwen3ForCausalLM.from_pretrained("checkpoint").eval()
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]
    assert evaluated["frozen"]["nll"]["mean"] == pytest.approx(answer_nll(model), rel=1e-5)


def test_answers_are_written_on_as_the_model_itself_would(inside):
    """Token after token, always the likeliest; a causal likelihood is exact."""
    data = Prepared("data/prepared")
    split, tokenizer = data.split("test"), bpe.load(data.folder / "tokenizer.json")
    end, pad = (bpe.special(tokenizer, token) for token in ("<end>", "<pad>"))
    model = transformers.Qwen3ForCausalLM.from_pretrained("checkpoint").eval()
    evaluated = json.loads((inside / "outputs/evaluate/metrics.json").read_text())["models"]["frozen"]
    lines = [json.loads(line) for line in (inside / "outputs/evaluate/samples.jsonl").read_text().splitlines()]
    written = {line["item"]: line["generated"]["frozen"]["text"] for line in lines if "item" in line}
    assert set(written) == set(split.uid[:4].tolist()) and evaluated["answers"]["strict"]["n"] == 4
    for row in range(4):
        length, first = int(split.response[row].sum()), int(split.response[row].nonzero()[0])
        prompt = split.tokens[row, :first].long()[None]
        ids = model.generate(prompt, max_new_tokens=length, do_sample=False, eos_token_id=None, pad_token_id=0)[0, first:].tolist()
        ids = ids[: ids.index(end)] if end in ids else ids
        assert written[int(split.uid[row])] == tokenizer.decode([i for i in ids if i != pad], skip_special_tokens=False)
    assert evaluated["answers"]["function_evaluations"]["mean"] == split.response[:4].sum(1).double().mean()  # one for each token
    assert evaluated["likelihood"]["samples"] == 1 and evaluated["likelihood"]["standard_error"] == 0
    assert evaluated["likelihood"]["answer_nll_per_token"]["mean"] == pytest.approx(evaluated["nll"]["mean"], rel=1e-5)


def test_the_refined_model_learns_nothing_of_what_comes_next(inside):
    changed = changed_by_a_token(load_model("outputs/joint", Backbone("data/backbone"), "joint"), Prepared("data/prepared"), 20)
    assert changed[:20].max() == 0 and changed[20] > 0


PROMPTS = ["What is 3 + 4?", "What is 11 + 12? And what is 13 + 14?"]


def test_its_backbone_writes_what_the_library_writes(inside):
    generator = Generator("data/backbone", length=7)
    model = transformers.Qwen3ForCausalLM.from_pretrained("checkpoint").eval()
    end = generator.prompts.end_id
    for prompt, answer in zip(PROMPTS, generator(PROMPTS), strict=True):
        ids = [i for i in generator.prompts.canvas(prompt, 7) if i != generator.vocabulary.mask_id]
        written = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=7,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )[0, len(ids) :].tolist()
        expected = written[: written.index(end)] if end in written else written
        assert answer.text == generator.prompts.render(expected) and answer.evaluations == min(7, len(expected) + 1)
        alone = generator(prompt)
        assert (answer.text, answer.evaluations) == (alone.text, alone.evaluations)
        assert answer.confidence == pytest.approx(
            alone.confidence, rel=1e-5
        )  # products of another number of rows may round otherwise


def test_the_refined_model_writes_token_after_token(inside, capsys):
    assert main(["generate", f"--prompt={PROMPTS[0]}", "generation.Generator.length=5"]) == 0
    generator = Generator("outputs/joint", length=5)
    *before, last = generator.stream(PROMPTS[0])
    assert capsys.readouterr().out == f"{last.text}\n"
    assert [len(answer.tokens) for answer in before[:3]] == [0, 1, 2] and last.text.startswith(before[-1].text)
    assert generator.model.key_value_cache() is not None
    assert Generator("outputs/joint", length=5, refined_passes=0)(PROMPTS[0]).confidence != last.confidence
    drawn = [Generator("outputs/joint", length=5, sampler=Sampler(temperature=3.0, seed=seed))(PROMPTS[0]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "seed": 4}])
def test_answers_are_those_of_every_text_read_anew(inside, settings):
    """By the trained refiner over its trained tail, in batches and alone, as without any cache."""
    generator = Generator("outputs/joint", length=6, sampler=Sampler(**settings))
    canvases = [generator.prompts.canvas(prompt, 6) for prompt in PROMPTS]
    batch, mask = generator._batch(canvases), generator.vocabulary.mask_id
    uid = torch.tensor([_identity(canvas) for canvas in canvases])
    given = {
        "end_id": generator.prompts.end_id,
        "uid": uid,
        "known": generator.prompts.known,
        "pad_id": generator.vocabulary.pad_id,
    }
    last = plainly(generator.model, batch.tokens, mask, generator.sampler, attention=batch.attention, **given)
    assert [answer.text for answer in generator(PROMPTS)] == [answer.text for answer in generator._answers(last, canvases)]
    assert [answer.evaluations for answer in generator(PROMPTS)] == last.evaluations.tolist()


def test_threads_that_share_a_pretrained_model_get_the_answers_that_one_gets(inside):
    generator = Generator("outputs/joint", length=6)
    expected = [generator(prompt).text for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        assert [answer.text for answer in pool.map(generator, PROMPTS * 4)] == expected * 4


def test_an_evaluated_answer_takes_no_pass_behind_its_end(inside):
    """Its text is the one that it would have had."""
    data, model = Prepared("data/prepared"), load_model("outputs/joint", Backbone("data/backbone"), "joint").eval()
    split, runtime = data.split("test").take(slice(0, 4)), Runtime(threads=1)
    with Progress("answers", 12, "answer") as bar:
        whole, passes = generated(model, split, data.vocabulary, Answers(), 4, runtime, "a", bar)
        first = split.response.int().argmax(1)
        end = int(whole[0, first[0] + 2])  # what the first answer says third
        tokens, fewer = generated(model, split, data.vocabulary, Answers(), 4, runtime, "b", bar, end=end)
    assert passes.tolist() == split.response.sum(1).tolist()
    for row in range(4):
        says, stops = (made[row][split.response[row]].tolist() for made in (whole, tokens))
        length = says.index(end) + 1 if end in says else len(says)
        assert stops == says[:length] + [end] * (len(says) - length) and fewer[row] == length


def test_what_fills_masks_is_told_of_a_causal_model(inside):
    for settings in (
        {"sampler": Sampler(steps=4)},
        {"sampler": Sampler(guidance=1.0)},
        {"halt": by_change},
        {"prefix": approximate_prefix},
    ):
        with pytest.raises(ConfigError, match="a causal model writes token after token"):
            Generator("outputs/joint", **settings)


def test_data_and_backbone_must_agree(inside, capsys):
    assert main(["configure", "--check"]) == 0
    kept = (inside / "params.yaml").read_text()
    try:
        (inside / "params.yaml").write_text(kept.replace('"special": {', '"causal": false, "special": {"mask": "<mask>", '))
        assert main(["configure", "--check"]) == 2
        assert "the backbone predicts the next token, the data asks for masked tokens" in capsys.readouterr().err
    finally:
        (inside / "params.yaml").write_text(kept)
    assert main(["evaluate", "DECODES={'answer': ('test', 2, 1, 4)}", "--out", "elsewhere"]) == 2
    assert "a causal backbone has none: set DECODES = {}" in capsys.readouterr().err
