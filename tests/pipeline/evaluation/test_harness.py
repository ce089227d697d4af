"""Requests of lm-evaluation-harness: examples of what it asks, texts and nats for it; and its own run, where there is one."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import answering, harness
from pipeline.evaluation.answer_likelihood import sampled

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
    yield {**{name: str(text / place) for name, place in places.items()}, "passes": 4, "samples": 4, "threads": 1}
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def model(settings):
    return harness.Requests(**settings)


def asked(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def saying(model, text, monkeypatch):
    """Make the model say one thing, from the first place of an answer on."""
    ids = torch.tensor([*model._ids(text), model.end])

    def predictor(_, batch, vocabulary, runtime):
        place = (batch.masked.cumsum(1) - 1).clamp(0, len(ids) - 1)
        return lambda tokens: F.one_hot(ids[place], model.vocabulary.size).float()

    monkeypatch.setattr(answering, "predictor", predictor)


def test_a_likelihood_is_the_estimate_of_its_example(model):
    (found, _), *_ = model.loglikelihood(asked(PAIRS[0]))
    split = model._split([(PAIRS[0][0], model._ids(PAIRS[0][1]))])
    assert model.tokenizer.decode(split.tokens[0][split.response[0]].tolist()) == PAIRS[0][1]
    assert model.tokenizer.decode(split.tokens[0][split.valid[0]].tolist()) == "".join(PAIRS[0])
    nll = sampled(model.model, split, model.vocabulary, 4, 1, 0, model.runtime)
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


def test_what_is_set_for_all_requests_holds(settings, model, monkeypatch):
    other = harness.Requests(**settings, seed=1, max_gen_toks=2)
    assert other.loglikelihood(asked(PAIRS[0])) != model.loglikelihood(asked(PAIRS[0]))
    saying(other, "3 + 4 = 7", monkeypatch)
    assert other.generate_until(asked(("What is 3 + 4?\n", {}), ("What is 3 + 4?\n", {"max_gen_toks": 3}))) == ["3 +", "3 + "]


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

    def run(kind):
        task = TASK.format(kind=kind, data=tmp_path / "sums.jsonl") + KINDS[kind]
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks/sums.yaml").write_text(task)
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
        arguments = ",".join(f"{name}={value}" for name, value in settings.items())
        found = lm_eval.simple_evaluate("slotloop", arguments, tasks=[f"sums_{kind}"], task_manager=manager, bootstrap_iters=0)
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
