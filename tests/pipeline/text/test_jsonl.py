"""Question-answer corpora from JSON lines: what is refused where, how splits are cut, what is supervised."""

import json
from dataclasses import replace

import pytest
import torch

from pipeline.errors import ConfigError, DataError
from pipeline.text import prompt_template
from pipeline.text import tokenizer as bpe
from pipeline.text.jsonl import QuestionAnswers
from pipeline.text.raw_files import raw_folder

TRAIN = [{"question": f"How much is {i} plus {i + 1}?", "answer": f"It is {2 * i + 1} #### {2 * i + 1}"} for i in range(60)]
TEST = [{"question": f"How much is {i} times 3?", "answer": f"{3 * i}"} for i in range(5)]


def corpus(**changes):
    settings = {"test": "test.jsonl", "vocabulary": 300, "sequence": 48, "validation": 0.2}
    return QuestionAnswers("train.jsonl", download="fetch --it", **{**settings, **changes})


@pytest.fixture
def raw(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    folder.mkdir()
    monkeypatch.setenv("SLOTLOOP_RAW", str(folder))
    fill(folder, TRAIN, TEST)
    return folder


def fill(folder, train, test=TEST):
    for name, rows in (("train.jsonl", train), ("test.jsonl", test)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(raw, **changes):
    return corpus(**changes).prepare(0, raw.parent / "out")


def text_of(raw, tokens, keep):
    tokenizer = bpe.load(raw.parent / "out/tokenizer.json")
    return tokenizer.decode(tokens[keep].tolist(), skip_special_tokens=False)


def questions(raw, split):
    return {text_of(raw, t, v & ~r).strip() for t, v, r in zip(split.tokens, split.valid, split.response, strict=True)}


def test_the_raw_folder_is_set_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    assert raw_folder() == tmp_path
    monkeypatch.delenv("SLOTLOOP_RAW")
    assert str(raw_folder()) == "data/raw"


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_a_missing_file_names_the_command_that_fetches_it(raw, name):
    (raw / name).unlink()
    with pytest.raises(DataError, match=rf"{name} does not exist; fetch it with: fetch --it \(or set SLOTLOOP_RAW"):
        prepare(raw)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"', "not valid JSON"),
        ("words", "not valid JSON"),
        ('["question", "answer"]', "expected an object, got list"),
        ("3", "expected an object, got int"),
        ('{"question": "a"}', '"answer" must be a non-empty string, got None'),
        ('{"answer": "a"}', '"question" must be a non-empty string, got None'),
        ('{"question": "a", "answer": ""}', "\"answer\" must be a non-empty string, got ''"),
        ('{"question": "  ", "answer": "b"}', "\"question\" must be a non-empty string, got '  '"),
        ('{"question": "a", "answer": 4}', '"answer" must be a non-empty string, got 4'),
        ('{"question": "caf\\ud83d?", "answer": "b"}', '"question" holds \\ud83d at character 3, half of a surrogate pair'),
        ('{"question": "a", "answer": "\\ude00\\ud83d"}', '"answer" holds \\ude00 at character 0, half of a surrogate pair'),
        ('{"question": "a <mask> b", "answer": "c"}', '"question" holds <mask>, which is a reserved token'),
    ],
)
def test_a_malformed_line_is_named(raw, line, message):
    rows = [json.dumps(row) for row in TRAIN]
    (raw / "train.jsonl").write_text("\n".join([*rows[:2], "", line, *rows[2:]]) + "\n")
    with pytest.raises(DataError, match=r"train.jsonl:4: ") as error:
        prepare(raw)
    assert message in str(error.value)


def test_a_whole_pair_written_as_escapes_is_text(raw):
    fill(raw, TRAIN, [{"question": "q \U0001f600", "answer": "a"}])
    assert "\\ud83d\\ude00" in (raw / "test.jsonl").read_text()
    assert questions(raw, prepare(raw)[1]["test"]) == {"q \U0001f600"}


@pytest.mark.parametrize("limits", [{"train": 40, "test": 2}, {"train": 40}, {"test": 1}, {"train": 1000, "test": 1000}, {}, None])
def test_the_first_examples_of_each_file_are_taken_if_they_are_limited(raw, limits):
    made, counted = prepare(raw, limits=limits)[1], limits or {}
    train, test = TRAIN[: counted.get("train")], TEST[: counted.get("test")]
    assert questions(raw, made["train"]) | questions(raw, made["validation"]) == {row["question"] for row in train}
    assert len(made["train"]) + len(made["validation"]) == len(train)
    assert questions(raw, made["test"]) == {row["question"] for row in test} and len(made["test"]) == len(test)


@pytest.mark.parametrize("name", ["validation", "Train", "test.jsonl", "", "trian"])
def test_a_limit_of_something_else_than_a_file_is_refused(name):
    told = rf"^QuestionAnswers.limits counts examples of the files 'train' and 'test', got '{name}'$"
    with pytest.raises(ConfigError, match=told):
        corpus(limits={"train": 9, name: 3}).shape()


def shares(raw, **changes):
    """Questions of each split where the test is a share of the training file."""
    (raw / "test.jsonl").unlink(missing_ok=True)
    return {name: questions(raw, split) for name, split in prepare(raw, test=0.2, **changes)[1].items()}


def test_a_share_of_the_training_file_is_held_out_for_the_test_by_content(raw):
    parts = shares(raw)
    assert sorted(question for part in parts.values() for question in part) == sorted(row["question"] for row in TRAIN)
    assert all(2 <= len(parts[name]) <= 25 for name in ("test", "validation"))
    fill(raw, [*TRAIN[30:], *TRAIN[:30], *TRAIN[:9]])  # another order, and some twice: each stays where it was
    assert shares(raw) == parts
    assert corpus(test=0.2).raw_files() == ("train.jsonl",)


def test_examples_of_a_held_out_share_are_those_that_references_are_of(raw):
    (raw / "test.jsonl").unlink()
    made, encoding = prepare(raw, test=0.2)[1]["test"], bpe.load(raw.parent / "out/tokenizer.json")
    answers = [encoding.decode(t[r].tolist()) for t, r in zip(made.tokens, made.response, strict=True)]
    assert corpus(test=0.2).references("test", 3) == answers[:3] and len(answers) > 3
    assert corpus(test=0.2).references("test", 1000) == answers


def test_a_limit_of_the_training_file_comes_before_its_test_is_held_out(raw):
    parts = shares(raw, limits={"train": 40})
    assert {question for part in parts.values() for question in part} == {row["question"] for row in TRAIN[:40]}


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 7])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match=rf"^QuestionAnswers.test must be a file, or a share between 0 and 1, got {share}$"):
        corpus(test=share).shape()


def test_a_limit_of_a_test_that_has_no_file_is_refused():
    with pytest.raises(ConfigError, match=r"^QuestionAnswers.limits counts examples of the file 'train' alone, got 'test'$"):
        corpus(test=0.2, limits={"test": 3}).shape()


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_refused(raw, content):
    (raw / "test.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"test.jsonl holds no examples; expected one object"):
        prepare(raw)


@pytest.mark.parametrize(("fraction", "split"), [(0.0, "validation"), (1.0, "train")])
def test_a_split_without_examples_is_refused(raw, fraction, split):
    with pytest.raises(DataError, match=rf"no examples for split '{split}' \(60 lines read\)"):
        prepare(raw, validation=fraction)


def test_a_prompt_that_leaves_no_room_is_named(raw):
    fill(raw, [*TRAIN[:3], {"question": "7" * 47, "answer": "b"}, *TRAIN[3:]])
    with pytest.raises(DataError, match=r"train.jsonl:4: the prompt takes 48 tokens .* in a sequence of 48; raise the sequence"):
        prepare(raw)


def test_a_prompt_that_leaves_no_room_is_dropped_by_name_if_asked_for(raw, capsys):
    fill(raw, TRAIN, [*TEST[:2], {"question": "7" * 47, "answer": "b"}, *TEST[2:]])
    test = prepare(raw, long_prompts="drop")[1]["test"]
    assert questions(raw, test) == {row["question"] for row in TEST} and len(test) == len(TEST)
    assert "test.jsonl:3: the prompt takes 48 tokens" in capsys.readouterr().out


def test_a_prompt_that_leaves_one_token_is_kept(raw):
    """46 digits and the newline are 47 tokens; the answer is cut to its first one."""
    fill(raw, TRAIN, [{"question": "7" * 46, "answer": "12"}])
    test = prepare(raw)[1]["test"]
    assert test.response.sum() == 1 and test.response[0, 47]
    assert text_of(raw, test.tokens[0], test.response[0]) == "1"


def test_prompts_are_never_in_the_response(raw):
    _, splits, _ = prepare(raw)
    assert questions(raw, splits["train"]) | questions(raw, splits["validation"]) == {row["question"] for row in TRAIN}
    assert questions(raw, splits["test"]) == {row["question"] for row in TEST}


def test_answers_end_with_a_supervised_end_token(raw):
    _, splits, _ = prepare(raw)
    test = splits["test"]
    answers = [text_of(raw, tokens, response) for tokens, response in zip(test.tokens, test.response, strict=True)]
    assert answers == [row["answer"] + bpe.END for row in TEST]


def test_padding_is_neither_attended_to_nor_supervised(raw):
    vocabulary, splits, _ = prepare(raw)
    for split in splits.values():
        padding = split.tokens == vocabulary.pad_id
        assert padding.any() and torch.equal(padding, ~split.valid)
        assert not (split.response & padding).any()


def test_an_answer_is_cut_at_the_sequence(raw):
    fill(raw, TRAIN, [{"question": "a", "answer": "1234567890" * 10}])
    vocabulary, splits, _ = prepare(raw)
    test = splits["test"]
    assert test.tokens.shape == (1, vocabulary.sequence) == (1, 48) and test.valid.all()
    assert "1234567890" * 4 in text_of(raw, test.tokens[0], test.response[0])
    assert not (test.tokens == bpe.special(bpe.load(raw.parent / "out/tokenizer.json"), bpe.END)).any()


LONG = {"question": "a", "answer": "1234567890" * 10}


def filled(room):
    """An answer of digits that, its end included, takes as many tokens as a prompt of one letter and a new line leave."""
    return {"question": "a", "answer": "7" * (room - 2 - 1)}


def test_answers_that_are_cut_are_counted_by_split(raw, capsys):
    fill(raw, TRAIN, [*TEST, LONG, filled(48), filled(49)])
    test = prepare(raw)[1]["test"]
    told = [line for line in capsys.readouterr().out.splitlines() if "do not fit" in line]
    end = bpe.special(bpe.load(raw.parent / "out/tokenizer.json"), bpe.END)
    without_end = int((~(test.tokens == end).any(1)).sum())
    assert len(test) == 8 and without_end == 2
    assert told == [
        f"prepare: test: {without_end} of 8 answers do not fit the sequence of 48 and are cut: their ends are neither learned nor "
        f"asked for (QuestionAnswers.long_answers; the first is {raw}/test.jsonl:6: prompt and answer take 103 tokens)"
    ]


def test_answers_that_fit_are_not_told(raw, capsys):
    prepare(raw)
    assert "do not fit" not in capsys.readouterr().out


def test_answers_that_do_not_fit_are_left_out_if_asked_for(raw, capsys):
    fill(raw, [*TRAIN, LONG], [LONG, *TEST, filled(49)])
    splits = prepare(raw, long_answers="drop")[1]
    assert questions(raw, splits["test"]) == {row["question"] for row in TEST} and len(splits["test"]) == len(TEST)
    assert len(splits["train"]) + len(splits["validation"]) == len(TRAIN)
    assert "test: 2 of 7 answers do not fit the sequence of 48 and are left out" in capsys.readouterr().out


def test_answers_that_do_not_fit_are_refused_by_line_if_asked_for(raw):
    fill(raw, TRAIN, [*TEST, filled(48), LONG])
    with pytest.raises(
        DataError, match=r"test.jsonl:7: prompt and answer take 103 tokens, the sequence 48 \(1 of 7 in split 'test'\)"
    ):
        prepare(raw, long_answers="refuse")


def test_the_validation_split_takes_its_share(raw):
    fill(raw, [{"question": f"What is {i}?", "answer": f"{i}"} for i in range(400)])
    assert 0.15 < len(prepare(raw)[1]["validation"]) / 400 < 0.25


def test_adding_lines_moves_no_other_example_between_splits(raw):
    before = prepare(raw)[1]
    kept = {name: questions(raw, before[name]) for name in ("train", "validation")}
    fill(raw, [{"question": f"New {i}", "answer": "b"} for i in range(20)] + TRAIN)
    after = prepare(raw)[1]
    for name, old in kept.items():
        assert {q for q in questions(raw, after[name]) if not q.startswith("New")} == old


def test_the_test_file_never_reaches_the_tokenizer(raw):
    prepare(raw)
    before = (raw.parent / "out/tokenizer.json").read_bytes()
    fill(raw, TRAIN, [{"question": "zebra zebra zebra", "answer": "quagga quagga quagga"}] * 20)
    prepare(raw)
    assert (raw.parent / "out/tokenizer.json").read_bytes() == before


def test_validation_examples_never_reach_the_tokenizer(raw):
    held = questions(raw, prepare(raw)[1]["validation"])
    before = (raw.parent / "out/tokenizer.json").read_bytes()
    fill(raw, [{**row, "answer": "zebra quagga " * 3} if row["question"] in held else row for row in TRAIN])
    prepare(raw)
    assert (raw.parent / "out/tokenizer.json").read_bytes() == before


def test_the_vocabulary_speaks_of_the_tokenizer(raw):
    vocabulary, splits, source = prepare(raw)
    tokenizer = bpe.load(raw.parent / "out/tokenizer.json")
    assert vocabulary.size == tokenizer.get_vocab_size() <= 300
    assert tokenizer.id_to_token(vocabulary.mask_id) == "<mask>" and tokenizer.id_to_token(vocabulary.pad_id) == "<pad>"
    assert all(split.tokens.max() < vocabulary.size for split in splits.values())
    assert set(source) == {"train.jsonl", "test.jsonl"} and all(len(digest) == 64 for digest in source.values())


def test_no_example_shares_a_group_with_another(raw):
    groups = torch.cat([split.group for split in prepare(raw)[1].values()])
    assert len(groups.unique()) == len(groups) == len(TRAIN) + len(TEST)


def test_a_long_question_can_be_dropped_by_name(raw, tmp_path, capsys):
    long = {"question": "word " * 200, "answer": "b"}
    (raw / "train.jsonl").write_text("\n".join(map(json.dumps, [*TRAIN, long])) + "\n")
    asked = QuestionAnswers(train="train.jsonl", test="test.jsonl", download="x", vocabulary=300, sequence=64, validation=0.3)
    with pytest.raises(DataError, match="leaves no room"):
        asked.prepare(0, tmp_path)
    splits = replace(asked, long_prompts="drop").prepare(0, tmp_path)[1]
    assert len(splits["train"]) + len(splits["validation"]) == len(TRAIN)
    assert f"dropped: {raw / 'train.jsonl'}:{len(TRAIN) + 1}" in capsys.readouterr().out


SPECIAL = {"mask": "[MASK]", "end": "[END]", "pad": "[PAD]"}


@pytest.fixture
def pretrained(tmp_path):
    """A folder with a tokenizer of somebody else: other special tokens, and a start that it puts before every text."""
    from tokenizers import AddedToken, processors

    tokenizer = bpe.train((row["question"] for row in TRAIN), 290)
    tokenizer.add_special_tokens([AddedToken(token) for token in ("[START]", *SPECIAL.values())])
    start = tokenizer.token_to_id("[START]")
    tokenizer.post_processor = processors.TemplateProcessing("[START] $A", special_tokens=[("[START]", start)])
    bpe.save(tokenizer, tmp_path / "theirs" / "tokenizer.json")
    return str(tmp_path / "theirs")


def test_a_pretrained_tokenizer_is_taken_as_it_is(raw, pretrained):
    asked = corpus(tokenizer=pretrained, special=SPECIAL)
    vocabulary, splits, _ = asked.prepare(0, raw.parent / "out")
    theirs = bpe.load(raw.parent / "theirs/tokenizer.json")
    assert asked.shape() == (vocabulary.size, 48) == (theirs.get_vocab_size(), 48)
    assert (vocabulary.mask_id, vocabulary.pad_id) == (theirs.token_to_id("[MASK]"), theirs.token_to_id("[PAD]"))
    assert torch.equal((splits["train"].tokens == theirs.token_to_id("[START]")).sum(0) > 0, torch.arange(48) == 0)  # as it says
    assert questions(raw, splits["test"]) == {f"[START]{row['question']}" for row in TEST}


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (None, r"needs special tokens for mask, end, pad, got \{\}"),
        ({"mask": "[MASK]"}, "needs special tokens"),
        ({**SPECIAL, "mask": "[HIDDEN]"}, r"has no token '\[HIDDEN\]' \(mask\)"),
    ],
)
def test_special_tokens_that_are_not_there_are_named(raw, pretrained, special, message):
    with pytest.raises(DataError, match=message):
        prepare(raw, tokenizer=pretrained, special=special)


def test_a_text_that_holds_a_special_token_of_theirs_is_refused(raw, pretrained):
    fill(raw, [*TRAIN, {"question": "q", "answer": "[MASK] me"}])
    with pytest.raises(DataError, match=r'train.jsonl:61: "answer" holds \[MASK\], which is a reserved token'):
        prepare(raw, tokenizer=pretrained, special=SPECIAL)


def test_padding_with_ends_is_learned_and_attended_to(raw):
    vocabulary, splits, _ = prepare(raw, padding="end")
    end = bpe.special(bpe.load(raw.parent / "out/tokenizer.json"), bpe.END)
    for split in splits.values():
        assert split.valid is None and not (split.tokens == vocabulary.pad_id).any()
        answer = split.response.float().argmax(1)
        assert all(response[first:].all() for response, first in zip(split.response, answer, strict=True))
        assert (split.tokens[:, -1] == end).all()


def test_other_fields_by_templates(raw):
    rows = [{"problem": row["question"], "unit": "apples", "solution": row["answer"]} for row in (*TRAIN, *TEST)]
    fill(raw, rows[:60], rows[60:])
    _, splits, _ = prepare(raw, prompt="Q: {problem} ({unit})\nA: ", response="{solution} {unit}!")
    test = splits["test"]
    assert text_of(raw, test.tokens[0], test.response[0]) == f"{TEST[0]['answer']} apples!{bpe.END}"
    assert text_of(raw, test.tokens[0], test.valid[0] & ~test.response[0]) == f"Q: {TEST[0]['question']} (apples)\nA: "


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{problem}", DataError, r'train.jsonl:1: "problem" must be a non-empty string, got None'),
        ("no field", ConfigError, "names fields of a line in braces"),
        ("{question.__class__}", ConfigError, "names fields of a line in braces"),
        ("{question", ConfigError, "is no template"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(raw, template, error, message):
    with pytest.raises(error, match=message):
        prepare(raw, prompt=template)


def test_the_words_of_prompts_are_kept_for_generation(raw):
    prepare(raw, prompt="Q: {question}")
    encoding, words = prompt_template.read(raw.parent / "out")
    assert words == prompt_template.PromptTemplate("Q: {question}", {"mask": "<mask>", "end": "<end>", "pad": "<pad>"})
    assert encoding.special == words.special
