"""Forgetting: hidden tokens of prompts, every model under the same masks; a spoilt backbone shows."""

import copy
import shutil

import pytest
import torch
from tokenizers import processors

from pipeline.corpora.prepared import Split
from pipeline.errors import ConfigError
from pipeline.evaluation import forgetting
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.forgetting import measure_forgetting, with_prompts_hidden
from pipeline.evaluation.limited import Limited
from pipeline.files import read_json, sha256
from pipeline.manifests import HASHES, write_manifest
from pipeline.models.backbones import Backbone
from pipeline.text import tokenizer as bpe


def split(response, valid=None):
    given = torch.tensor(response)
    return Split(
        torch.zeros(given.shape, dtype=torch.int64),
        given,
        torch.arange(len(given)),
        valid=None if valid is None else torch.tensor(valid),
    )


def test_prompts_take_the_place_of_answers():
    found = with_prompts_hidden(split([[False, False, True], [False, True, True]]), causal=False)
    assert found.response.tolist() == [[True, True, False], [True, False, False]]


def test_padding_is_no_prompt():
    found = with_prompts_hidden(split([[False, True, False]], valid=[[True, True, False]]), causal=False)
    assert found.response.tolist() == [[True, False, False]]


def test_nothing_foretells_the_first_token_of_a_causal_model():
    assert with_prompts_hidden(split([[False, False, True]]), causal=True).response.tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("causal", "start", "expected"),
    [
        (False, 1, [0, 1, 1, 0]),
        (True, 1, [0, 1, 1, 0]),
        (False, 2, [0, 0, 1, 0]),
        (True, 0, [0, 1, 1, 0]),
        (False, 0, [1, 1, 1, 0]),
    ],
)
def test_what_begins_every_text_is_not_asked_for(causal, start, expected):
    found = with_prompts_hidden(split([[False, False, False, True]]), causal, start)
    assert found.response.int().tolist() == [expected]


def test_the_tokenizer_says_what_begins_every_text(text, runtime, tmp_path, monkeypatch):
    shutil.copytree(text / "data/prepared", tmp_path / "prepared")
    tokenizer = bpe.load(tmp_path / "prepared/tokenizer.json")
    tokenizer.post_processor = processors.TemplateProcessing("<end> <pad> $A", special_tokens=[("<end>", 1), ("<pad>", 0)])
    bpe.save(tokenizer, tmp_path / "prepared/tokenizer.json")
    manifest = tmp_path / "prepared/manifest.json"
    content = read_json(manifest, "prepare")
    hashes = {**content[HASHES], "tokenizer.json": sha256(tmp_path / "prepared/tokenizer.json")}
    write_manifest(manifest, {**content, HASHES: hashes})
    seen = []
    monkeypatch.setattr(forgetting.evaluator, "batches", lambda split, *_: seen.append(split) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_forgetting(Limited(tmp_path / "prepared"), Compared({"frozen": None}, runtime), ("test", 0.5), 20, 0)
    assert seen[0].response[:, :3].sum(0).tolist() == [0, 0, len(seen[0])]


def test_examples_without_prompts_are_refused():
    with pytest.raises(ConfigError, match="forgetting looks at prompts, and these examples have none"):
        with_prompts_hidden(split([[True, True]]), causal=False)


@pytest.fixture
def looked(finished, runtime):
    def looked(**models):
        data = Limited(finished / "data/prepared")
        return measure_forgetting(data, Compared(models, runtime), ("test_7", 0.5), 20, 0)

    return looked


def test_what_a_backbone_lost_is_told_with_an_interval(looked, finished):
    frozen = Backbone(finished / "data/backbone").model().eval()
    spoilt = copy.deepcopy(frozen)
    with torch.no_grad():
        spoilt.head.weight.mul_(-1)
    found = looked(frozen=frozen, same=copy.deepcopy(frozen), spoilt=spoilt)
    assert found["same"]["minus_frozen"]["prompt_nll"]["mean"] == 0 == found["frozen"]["minus_frozen"]["prompt_nll"]["high"]
    lost = found["spoilt"]["minus_frozen"]["prompt_nll"]
    assert lost["low"] > 0 and lost["mean"] == pytest.approx(
        found["spoilt"]["prompt_nll"]["mean"] - found["frozen"]["prompt_nll"]["mean"]
    )
    assert found["spoilt"]["minus_frozen"]["prompt_token_accuracy"]["mean"] < 0
