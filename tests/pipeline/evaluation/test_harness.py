"""Requests of lm-evaluation-harness: examples of what it asks, texts and nats for it; and its own run, where there is one."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import processors
from torch.nn import functional as F

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import answering, harness
from pipeline.evaluation.answer_likelihood import sampled
from pipeline.evaluation.compared import Compared
from pipeline.progress import Progress
from pipeline.text import prompt_template
from pipeline.text.tokenizer import Encoding

PAIRS = [("What is 3 + 4?\n", "3 + 4 = 7"), ("What is 1 + 2?\n", "1 + 2 = 3\n#### 3"), ("", "9"), ("9 " * 60, "10")]
TASK = """task: sums_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}\\n"
"""
KINDS = {
    "generate": """output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 20}
filter_list: [{name: strict, filter: [{function: regex, regex_pattern: "#### (-?[0-9.,]+)"}, {function: take_first}]}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "choose": """output_type: multiple_choice
doc_to_choice: ["3", "7"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "roll": """output_type: loglikelihood_rolling
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
""",
}


@pytest.fixture
def settings(text):
    places = {"model": "outputs/warmup", "backbone": "data/backbone", "prepared": "data/prepared"}
    return {**{name: str(text / place) for name, place in places.items()}, "passes": 4, "samples": 4, "threads": 1}


@pytest.fixture
def model(settings):
    return harness.Requests(**settings)


def asked(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def saying(model, text, monkeypatch):
    """Make the model say one thing, from the first place of an answer on."""
    ids = torch.tensor([*model._ids(text), model.end])

    def predictor(_, batch, vocabulary, runtime, **__):
        place = (batch.masked.cumsum(1) - 1).clamp(0, len(ids) - 1)
        return lambda tokens, queried: F.one_hot(ids[place], model.vocabulary.size)[queried].float()

    monkeypatch.setattr(answering, "predictor", predictor)


def test_a_likelihood_is_the_estimate_of_its_example(model):
    (found, _), *_ = model.loglikelihood(asked(PAIRS[0]))
    split = model._split([(PAIRS[0][0], model._ids(PAIRS[0][1]))])
    assert model.tokenizer.decode(split.tokens[0][split.response[0]].tolist()) == PAIRS[0][1]
    assert model.tokenizer.decode(split.tokens[0][split.valid[0]].tolist()) == "".join(PAIRS[0])
    alone = Compared({"": model.model}, model.runtime)
    nll = sampled(alone, split, model.vocabulary, 4, 1, 0, Progress("likelihood"))[""]
    assert found < 0 and found == pytest.approx(-float(nll[..., -1].mean()))


@pytest.mark.parametrize("size", [1, 3])
def test_neither_order_nor_batch_size_changes_a_likelihood(settings, model, size):
    other = harness.Requests(**settings, batch_size=size)
    expected, found = model.loglikelihood(asked(*PAIRS)), other.loglikelihood(asked(*reversed(PAIRS)))
    assert [value for value, _ in reversed(found)] == pytest.approx([value for value, _ in expected], rel=1e-5)


def test_requests_show_life_away_from_results(model, capsys, racing_clock):
    model.loglikelihood(asked(*PAIRS))
    printed = capsys.readouterr()
    assert printed.out == "" and f"slotloop: {len(PAIRS)} of {len(PAIRS)} | " in printed.err
    assert "> masks: 1 of 4 | " in printed.err and "> passes: 1 of 4 | " in printed.err


def test_an_answer_that_decoding_gives_is_greedy(model, monkeypatch):
    saying(model, "3 + 4 = 7", monkeypatch)
    assert [greedy for _, greedy in model.loglikelihood(asked(*PAIRS))] == [True, False, False, False]


def test_an_answer_ends_at_its_end_or_where_the_task_says(model, monkeypatch):
    saying(model, "3 + 4 = 7", monkeypatch)
    request = "What is 3 + 4?\n"
    stops = [{}, {"until": ["= 7"]}, {"until": " 4"}, {"until": ["nothing", ""]}, {"max_gen_toks": 1}]
    texts = model.generate_until(asked(*((request, stop) for stop in stops)))
    assert texts == ["3 + 4 = 7", "3 + 4 ", "3 +", "3 + 4 = 7", "3"]
    assert model.generate_until([]) == [] == model.loglikelihood([])


def test_a_long_prompt_loses_its_beginning_and_a_short_answer_has_the_room(model):
    split = model._split([("1 " * 100 + "last", 100), ("short", 100)])
    assert split.response.sum(1).tolist() == [24, 48 - len(model._ids("short"))] and split.lengths().tolist() == [48, 48]
    prompt = split.tokens[0][~split.response[0]].tolist()
    assert len(prompt) == 24 and model.tokenizer.decode(prompt).endswith(" 1 last")


@pytest.fixture
def beginning(model):
    """The same model, whose tokenizer begins every text with one token and ends it with another."""
    tokenizer = type(model.tokenizer).from_str(model.tokenizer.to_str())
    tokenizer.add_special_tokens(["<bos>"])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A <end>", special_tokens=[("<bos>", bos), ("<end>", 1)])
    model.encoding = Encoding(tokenizer, model.encoding.special)
    return model, bos


@pytest.mark.parametrize("context", ["What is 3 + 4?\n", "", "9 " * 60, "<bos>What?", "few: <end>\n\nshot <mask>", " "])
def test_a_request_begins_as_the_tokenizer_does_and_holds_no_other_control_token(beginning, context):
    model, bos = beginning
    split = model._split([(context, model._ids("3 + 4")), (context, 7)])
    for tokens, response, valid in zip(split.tokens, split.response, split.valid, strict=True):
        prompt = tokens[valid & ~response].tolist()
        assert prompt[0] == bos and not {bos, 0, 1, 2} & {*prompt[1:]} and prompt.count(bos) == 1
        assert context.endswith(model.tokenizer.decode(prompt[1:]))
        assert len(prompt) == min(len(model._ids(context)) + 1, 48 - int(response.sum()))
    assert model.tokenizer.decode(split.tokens[0][split.response[0]].tolist()) == "3 + 4"


def test_a_continuation_leaves_room_for_the_beginning(beginning):
    model, bos = beginning
    assert model._split([("why", [5] * 46)]).tokens[0].tolist() == [bos, model._ids("why")[-1], *[5] * 46]
    with pytest.raises(DataError, match="a continuation of 47 tokens does not fit"):
        model._split([("why", [5] * 47)])


def test_an_id_that_the_tokenizer_does_not_know_is_never_written(model, monkeypatch):
    size = model.vocabulary.size

    def predictor(*_, **__):
        return lambda tokens, queried: (
            F.one_hot(torch.full(tokens[queried].shape, size + 3), size + 9).float() * 9 + torch.eye(size + 9)[7]
        )

    monkeypatch.setattr(answering, "predictor", predictor)
    assert model.generate_until(asked(("What is 3 + 4?\n", {"max_gen_toks": 3}))) == [model.tokenizer.decode([7] * 3)]


def test_what_is_set_for_all_requests_holds(settings, model, monkeypatch):
    other = harness.Requests(**settings, seed=1, max_gen_toks=2)
    assert other.loglikelihood(asked(PAIRS[0])) != model.loglikelihood(asked(PAIRS[0]))
    saying(other, "3 + 4 = 7", monkeypatch)
    assert other.generate_until(asked(("What is 3 + 4?\n", {}), ("What is 3 + 4?\n", {"max_gen_toks": 3}))) == ["3 +", "3 + "]


@pytest.mark.parametrize(
    ("settings_of_task", "length"),
    [
        ({"until": [], "max_new_tokens": 512}, 512),
        ({"max_tokens": 512}, 512),
        ({"max_gen_toks": 512}, 512),
        ({"max_completion_tokens": "512"}, 512),
        ({"max_gen_toks": None, "max_new_tokens": 512}, 512),
        ({"max_new_tokens": 512, "max_gen_toks": 64, "max_tokens": 5}, 64),
        ({"until": ["x"]}, 256),
        ({}, 256),
    ],
)
def test_the_length_of_an_answer_has_four_names(settings_of_task, length):
    assert harness.length_of(settings_of_task, 256) == length


@pytest.mark.parametrize("length", [0, -1, 2.5, "many", True])
@pytest.mark.parametrize("name", harness.LENGTHS)
def test_a_length_that_is_none_is_one_line(model, name, length):
    with pytest.raises(ConfigError, match=rf"a task's {name} must be a positive number of tokens, got {length!r}"):
        model.generate_until(asked(("why", {name: length})))


@pytest.mark.parametrize("name", harness.LENGTHS)
def test_every_name_of_the_length_cuts_the_answer(model, monkeypatch, name):
    saying(model, "3 + 4 = 7", monkeypatch)
    assert model.generate_until(asked(("What is 3 + 4?\n", {name: 3}))) == ["3 + "]


def test_what_does_not_fit_the_sequence_is_told(model, capsys, monkeypatch):
    saying(model, "3", monkeypatch)
    short, long = ("What is 3 + 4?\n", {"max_gen_toks": 4}), ("9 " * 60, {"max_gen_toks": 40})
    model.generate_until(asked(short, short))
    assert "slotloop:" not in capsys.readouterr().err
    model.generate_until(asked(short, long, ("1 " * 40, {"max_gen_toks": 10})))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slotloop:")]
    assert lines == [
        "slotloop: 2 of 3 prompts do not fit the sequence of 48 and lose their beginnings; the longest has 120 tokens",
        "slotloop: 1 of 3 answers have room for fewer tokens than they may have; the least is 24 of 40",
    ]
    model.loglikelihood(asked(("9 " * 60, "10"), ("why", "10")))
    assert "slotloop: 1 of 2 prompts do not fit the sequence of 48" in capsys.readouterr().err


# Chats


@pytest.fixture
def in_a_chat(settings, monkeypatch):
    """The model as if its data had been prepared with ``chat = True``."""
    encoding, template = prompt_template.read(Path(settings["prepared"]))
    chat = replace(template, prompt="{question}", before="<user> ", after=" <model>", strips=True)
    monkeypatch.setattr(prompt_template, "read", lambda folder: (encoding, chat))
    return harness.Requests(**settings)


def prompt_of(model, context, answer=4):
    split = model._split([(context, answer)])
    return model.tokenizer.decode(split.tokens[0][split.valid[0] & ~split.response[0]].tolist())


def test_a_model_that_was_trained_in_a_chat_is_asked_in_it_once(in_a_chat):
    assert prompt_of(in_a_chat, "3 + 4?\n") == "<user> 3 + 4? <model>"
    chat = in_a_chat.apply_chat_template([{"role": "user", "content": "3 + 4?\n"}])
    assert prompt_of(in_a_chat, chat) == chat == "<user> 3 + 4? <model>"
    assert prompt_of(in_a_chat, chat + "It is") == "<user> 3 + 4? <model>It is"
    assert in_a_chat.chat_template() == "" and in_a_chat.chat_template(True) == "<user> {question} <model>"


def test_a_long_question_loses_its_own_beginning_and_not_the_chats(in_a_chat):
    prompt = prompt_of(in_a_chat, "1 " * 100 + "last", 24)
    assert prompt.startswith("<user> ") and prompt.endswith(" 1 last <model>") and len(in_a_chat._ids(prompt)) == 24


def test_a_likelihood_is_asked_for_in_the_chat(model, in_a_chat):
    ((inside, _),), ((outside, _),) = in_a_chat.loglikelihood(asked(PAIRS[0])), model.loglikelihood(asked(PAIRS[0]))
    ((written, _),) = model.loglikelihood(asked(("<user> What is 3 + 4? <model>", PAIRS[0][1])))
    assert inside == pytest.approx(written) != outside


def test_a_template_without_a_chat_is_written_where_the_harness_asks_for_it(model):
    assert model.apply_chat_template([{"role": "user", "content": "3 + 4?"}]) == "3 + 4?\n"
    assert prompt_of(model, "3 + 4?") == "3 + 4?"
    with pytest.raises(ConfigError, match="prepared have place for one message of the user, got system, user"):
        model.apply_chat_template([{"role": role, "content": "x"} for role in ("system", "user")])


def test_the_tokenizers_name_follows_tokenizer_and_template(model, tmp_path):
    for file in (prompt_template.TOKENIZER, prompt_template.WORDING):
        shutil.copy(model.folder / file, tmp_path / file)
    model.folder, name = tmp_path, model.tokenizer_name
    assert model.tokenizer_name == name
    for file in (prompt_template.TOKENIZER, prompt_template.WORDING):
        (tmp_path / file).write_text((tmp_path / file).read_text() + " ")
        assert model.tokenizer_name != name
        name = model.tokenizer_name


def test_a_long_continuation_is_refused(model):
    with pytest.raises(DataError, match="a continuation of 120 tokens does not fit a sequence of 48: 'why'"):
        model.loglikelihood(asked(("why", "1" * 120)))


def test_rolling_is_refused(model):
    with pytest.raises(ConfigError, match="slotloop has no loglikelihood_rolling"):
        model.loglikelihood_rolling(asked(("text",)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": "auto"}, "batch_size and max_gen_toks must be positive numbers .* got auto, 256 and 4"),
        ({"samples": 1}, "got 1, 256 and 1"),
        ({"passes": 5, "blocks": 2}, "5 passes and 2 blocks"),
    ],
)
def test_settings_out_of_range_are_refused(settings, wrong, message):
    with pytest.raises(ConfigError, match=message):
        harness.Requests(**{**settings, **wrong})


def test_the_frozen_backbone_can_be_asked_too(settings):
    frozen, refined = harness.Requests(**{**settings, "model": "frozen"}), harness.Requests(**settings)
    assert frozen.model.n_steps == 1 and refined.model.n_steps == 4
    assert frozen.loglikelihood(asked(PAIRS[0])) != refined.loglikelihood(asked(PAIRS[0]))


# The harness itself


@pytest.fixture
def run(settings, tmp_path, monkeypatch):
    """``run(kind)``: the results of a task on local files."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    harness.registered()
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {n} + 4?", "answer": str(n + 4)}) + "\n" for n in (3, 5))
    )

    def run(kind, **settings_of_run):
        task = TASK.format(kind=kind, data=tmp_path / "sums.jsonl") + KINDS[kind]
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks/sums.yaml").write_text(task)
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
        arguments = ",".join(f"{name}={value}" for name, value in settings.items())
        found = lm_eval.simple_evaluate(
            "slotloop", arguments, tasks=[f"sums_{kind}"], task_manager=manager, bootstrap_iters=0, **settings_of_run
        )
        return found["results"][f"sums_{kind}"]

    return run


@pytest.mark.filterwarnings("default")
def test_a_local_task_of_generation_runs(run, monkeypatch):
    texts = []

    def through(self, requests, *rest):
        texts.extend(written(self, requests, *rest))
        return ["3 + 4 = 7\n#### 7"] * len(requests)

    written = harness.Requests.generate_until
    monkeypatch.setattr(harness.Requests, "generate_until", through)
    assert run("generate")["exact_match,strict"] == 0.5 and len(texts) == 2


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["generate", "choose"])
def test_the_harness_asks_in_the_chat(run, in_a_chat, monkeypatch, kind):
    contexts = []
    through = harness.in_chat
    monkeypatch.setattr(harness, "in_chat", lambda template, prompt: contexts.append(prompt) or through(template, prompt))
    run(kind, apply_chat_template=True, fewshot_as_multiturn=False)
    assert set(contexts) == {f"<user> What is {n} + 4? <model>" for n in (3, 5)}


@pytest.mark.filterwarnings("default")
def test_turns_that_the_template_has_no_place_for_are_refused(run, in_a_chat):
    with pytest.raises(ConfigError, match="got system, user; pass --fewshot_as_multiturn false and no --system_instruction"):
        run("generate", apply_chat_template=True, system_instruction="Be brief.")


@pytest.mark.filterwarnings("default")
def test_a_local_task_of_choices_runs(run):
    assert run("choose")["acc,none"] in (0, 0.5, 1)


@pytest.mark.filterwarnings("default")
def test_a_local_task_of_whole_texts_is_refused(run):
    with pytest.raises(ConfigError, match="slotloop has no loglikelihood_rolling"):
        run("roll")


def test_without_the_harness_its_extra_is_named(monkeypatch, capsys):
    harness.registered.cache_clear()
    for module in ("lm_eval", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, module, None)
    assert harness.main() == 1
    assert "lm-evaluation-harness is not installed: pip install 'slotloop[eval]'" in capsys.readouterr().err
