"""What is proposed for text of one's own, against what prepare then makes of it."""

import json

import pytest

from pipeline.errors import ConfigError
from pipeline.planning.own_backbone import OwnBackbone
from pipeline.planning.own_text import own_text
from pipeline.text import tokenizer as bpe
from pipeline.text.survey import given_templates
from tests.support.over_checkpoint import encoding

SUMS = [{"question": f"What is {i} + {i + 1}?", "answer": f"{i} + {i + 1} = {2 * i + 1}\n#### {2 * i + 1}"} for i in range(120)]
MESSAGES = [
    {"messages": [{"role": r, "content": c} for r, c in (("user", q), ("assistant", a))]} for q, a in (r.values() for r in SUMS)
]
FORMATS = {
    "question and answer": SUMS,
    "prompt and completion": [{"prompt": q, "completion": a} for q, a in (row.values() for row in SUMS)],
    "instruction, input, output": [
        {"instruction": "Add.", "input": q if i % 2 else "", "output": a} for i, (q, a) in enumerate(row.values() for row in SUMS)
    ],
    "messages": MESSAGES,
}


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    return tmp_path


def written(raw, rows, name="mine.jsonl"):
    (raw / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return raw / name


def bound(data, batch=None):
    return dict(data.preset(batch or data.batch, "mine --train mine.jsonl").bindings)


@pytest.mark.parametrize("rows", FORMATS)
def test_prepare_makes_the_splits_and_cuts_the_answers_that_were_told(raw, capsys, rows):
    long = [{**FORMATS[rows][0]}, {**FORMATS[rows][1]}]
    data = own_text(written(raw, [*FORMATS[rows], *long]), None, None, None)
    splits = data.corpus.prepare(0, raw / "out")[1]
    assert {name: len(split) for name, split in splits.items()} == {
        "train": len(data.train), "validation": len(data.validation), "test": len(data.test),
    }  # fmt: skip
    for name, lengths in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        assert splits[name].lengths().tolist() == [min(sum(both), data.corpus.sequence) for both in lengths]
    assert "0 of 122 answers are cut, 0 prompts" in data.seen[-2] and "are cut" not in capsys.readouterr().out


def test_answers_that_will_be_cut_and_prompts_that_will_be_dropped_are_told(raw, capsys):
    words = [{"question": f"{i}", "answer": f"{i}" + " 7" * (2000 if i == 3 else 5)} for i in range(300)]
    data = own_text(written(raw, [*words, {"question": "8 " * 1500, "answer": "8"}]), None, None, None)
    cut = "1 of 301 answers are cut, 1 prompts leave no room and are dropped"
    assert data.seen[-2] == f"sequence 32: what 99 % of the training examples fit, rounded up to 16, 1,024 at most; {cut}"
    data.corpus.prepare(0, raw / "out")
    printed = capsys.readouterr().out
    assert printed.count("answers do not fit") == 1 and printed.count("prepare: dropped: ") == 1


def test_a_test_file_is_taken_as_it_is_and_what_is_learned_from_too_is_told(raw):
    test = written(raw, [*SUMS[:3], {"question": "New?", "answer": "Yes"}], "test.jsonl")
    data = own_text(written(raw, SUMS), test, None, None)
    assert data.corpus.test == "test.jsonl" and len(data.test) == 4
    assert "3 of 4 test prompts are in the training file too" in "\n".join(data.seen)


@pytest.mark.parametrize(
    ("answer", "answers", "reference"),
    [
        ("#### {i}", "@answers.Answers", None),
        ("yes {i}", "@answers.Answers", "whole"),
        (
            "no one ever said such a thing before, and nobody will say it once more after this; so it is, says Ann {i}.",
            "None",
            None,
        ),
    ],
)
def test_an_answer_is_judged_by_its_number_as_a_whole_or_not_at_all(raw, answer, answers, reference):
    rows = [{**row, "answer": answer.format(i=i)} for i, row in enumerate(SUMS)]
    settings = bound(own_text(written(raw, rows), None, None, None))
    assert repr(settings["ANSWERS"]) == answers and settings.get("answers.Answers.reference") == reference


def test_more_examples_than_are_used_are_limited(raw):
    many = [{"question": f"What is {i}?", "answer": f"{i}"} for i in range(20_010)]
    data = own_text(written(raw, many), written(raw, many[:1_001], "test.jsonl"), None, None)
    assert bound(data)["jsonl.QuestionAnswers.limits"] == {"train": 20_000, "test": 1_000}
    assert len(data.train) + len(data.validation) == 20_000 and len(data.test) == 1_000


def backbone(raw, objective):
    """A pretrained model of which the tokenizer alone is there."""
    folder = raw / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    bpe.save(encoding().tokenizer, folder / "tokenizer.json")
    special = {"end": "<end>", "pad": "<pad>"} | ({} if objective == "next token" else {"mask": "<mask>"})
    return OwnBackbone(str(folder), objective, special, False, 4, "backbone.model.model.layers.*", 3, 64, "small")


@pytest.mark.parametrize(("objective", "base"), [("next token", "gsm8k_smol"), ("masked diffusion", "gsm8k_llada")])
def test_a_pretrained_model_has_the_settings_of_the_shipped_preset_of_its_kind(raw, objective, base):
    data = own_text(written(raw, SUMS), None, None, backbone(raw, objective))
    preset = data.preset(data.batch, "mine --train mine.jsonl")
    settings = dict(preset.bindings)
    assert preset.base == base and settings["pretrained.model.objective"] == objective
    assert settings["jsonl.QuestionAnswers.causal"] is (objective == "next token") and settings["HEADS"] == 4
    assert settings["jsonl.QuestionAnswers.sequence"] <= 64 and settings["JOINT_TRAINS"][1] == "backbone.model.model.layers.*"
    assert settings["TAIL_LAYERS"] == (1 if objective == "next token" else 2)
    assert ("DRAWS" in settings) is (objective != "next token") and "BACKBONE_STEPS" not in settings


def test_fields_that_are_unknown_ask_for_templates_and_given_ones_are_taken(raw):
    file = written(raw, [{"in": row["question"], "out": row["answer"]} for row in SUMS])
    with pytest.raises(ConfigError, match=r"none that are known \(in, out\); say which are prompt"):
        own_text(file, None, None, None)
    data = own_text(file, None, given_templates("Q: {in}\nA: ", "{out}"), None)
    assert (data.corpus.prompt, data.corpus.response) == ("Q: {in}\nA: ", "{out}")
