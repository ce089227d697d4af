"""Tokenizers and chat templates of pretrained models, from their files alone."""

import json
from datetime import date

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.text import prompt_template
from pipeline.text import tokenizer as bpe
from pipeline.text.jsonl import QuestionAnswers
from pipeline.text.pretrained_text import chat, tokenizer
from tests.support.optional import needs

needs("transformers")

DAY = date(2025, 3, 9)
TEXTS = [f"What is {i} and {i * i}?" for i in range(40)]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def dream(tmp_path):
    """The files that Dream publishes: a vocabulary, merges and a list of added tokens, and code that must not run."""
    held = json.loads(bpe.train(TEXTS, 300).to_str())["model"]
    plain = sorted((token for token in held["vocab"] if token not in bpe.SPECIAL), key=held["vocab"].get)
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(plain)}))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in held["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    how = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    added = {
        str(len(plain) + i): {"content": token, "special": True, **how}
        for i, token in enumerate(("<|endoftext|>", "<|mask|>"))
    }  # fmt: skip
    settings = {"added_tokens_decoder": added, "tokenizer_class": "DreamTokenizer", "eos_token": "<|endoftext|>", "unk_token": None}
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Dream"}))
    (tmp_path / "tokenization_dream.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w').close()\n")
    return tmp_path


def test_a_family_that_publishes_no_tokenizer_file_is_read_from_what_it_publishes(dream):
    found = tokenizer(str(dream), None)
    vocab = json.loads((dream / "vocab.json").read_text())
    assert found.token_to_id("<|mask|>") == len(vocab) + 1 and not (dream / "it_ran").exists()
    for text in (*TEXTS, "12 + 3<|mask|>"):
        ids = found.encode(text, add_special_tokens=False).ids
        assert found.decode(ids, skip_special_tokens=False) == text
    assert ids[-1] == len(vocab) + 1


def test_a_file_that_it_should_publish_is_named(dream):
    (dream / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"holds no merges\.txt"):
        tokenizer(str(dream), None)


@pytest.mark.parametrize("beside", [False, True])
def test_a_chat_is_written_as_the_template_says(tmp_path, beside):
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    if beside:
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    else:
        settings["chat_template"] = TEMPLATE
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert chat(str(tmp_path), None, DAY)("How {many}?") == "<s><user>How {many}?</user><assistant>"


def test_no_template_or_a_bad_one_is_told(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="has no chat template"):
        chat(str(tmp_path), None, DAY)
    for bad in ("{{ nothing.at.all }}", "{% for %}", "{{ ''.__class__.mro() }}"):  # the last one leaves the sandbox
        (tmp_path / "chat_template.jinja").write_text(bad)
        with pytest.raises(DataError, match=r"the chat template of .+ failed"):
            chat(str(tmp_path), None, DAY)("hello")


def test_a_corpus_asks_through_the_chat_and_learns_the_answer(tmp_path, monkeypatch):
    trained = bpe.train([*TEXTS, "<user></user><assistant>"], 320)
    bpe.save(trained, tmp_path / "model/tokenizer.json")
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "bos_token": ""}))
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    for name in ("train", "test"):
        lines = [json.dumps({"question": text, "answer": f"It is {i}."}) for i, text in enumerate(TEXTS)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    special = {"mask": "<mask>", "end": "<end>", "pad": "<pad>"}
    corpus = QuestionAnswers(
        "train.jsonl", "test.jsonl", "", prompt="{question}", chat=True, sequence=64, validation=0.2,
        tokenizer=str(tmp_path / "model"), special=special,
    )  # fmt: skip
    split = corpus.prepare(0, tmp_path / "out")[1]["test"]
    said = [trained.decode(t[v & ~r].tolist()) for t, v, r in zip(split.tokens, split.valid, split.response, strict=True)]
    assert said == [f"<user>{text}</user><assistant>" for text in TEXTS]
    words = prompt_template.read(tmp_path / "out")[1]  # as generation asks, without the template
    assert [words.filled({"question": text}) for text in TEXTS] == said
    with pytest.raises(ConfigError, match="takes the template of a pretrained model"):
        QuestionAnswers("train.jsonl", "test.jsonl", "", chat=True).prepare(0, tmp_path / "other")
