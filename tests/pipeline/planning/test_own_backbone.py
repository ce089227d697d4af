"""A pretrained model under one's own data: what is read of it without weights, of a causal one and of one that fills masks."""

import json

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.planning.own_backbone import own_backbone
from pipeline.text import tokenizer as bpe
from tests.support.checkpoints import DREAM, LLADA
from tests.support.over_checkpoint import encoding

CAUSAL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 320, "max_position_embeddings": 64,
    "eos_token_id": 1,
}  # fmt: skip
MASKS = {**LLADA, "vocab_size": 320, "embedding_size": 320, "mask_token_id": 2}
CHAT = "{% for m in messages %}<end>{{ m['content'] }}{% endfor %}"


def model(folder, config, **settings):
    """Configuration and tokenizer of a model, without weights."""
    (folder / "config.json").write_text(json.dumps(config))
    bpe.save(encoding().tokenizer, folder / "tokenizer.json")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_a_causal_model_says_its_end_heads_layers_and_length(tmp_path):
    backbone = own_backbone(model(tmp_path, CAUSAL, eos_token="<end>", pad_token={"content": "<pad>"}, chat_template=CHAT))
    assert backbone.objective == "next token" and backbone.causal and backbone.chat
    assert backbone.special == {"end": "<end>", "pad": "<pad>"} and (backbone.heads, backbone.longest) == (4, 64)
    assert (
        backbone.blocks == "backbone.model.model.layers.*"
        and backbone.layers == 3
        and backbone.sizes == "3 layers, width 32, 320 ids"
    )


def test_without_settings_of_the_tokenizer_the_configuration_says_the_end(tmp_path):
    backbone = own_backbone(model(tmp_path, {**CAUSAL, "eos_token_id": [1, 7]}))
    assert backbone.special == {"end": "<end>", "pad": "<end>"} and not backbone.chat


def test_a_model_that_fills_masks_has_its_family_s_mask(tmp_path):
    backbone = own_backbone(model(tmp_path, MASKS, eos_token="<end>"))
    assert backbone.objective == "masked diffusion" and not backbone.causal
    assert backbone.special == {"mask": "<mask>", "end": "<end>", "pad": "<end>"}


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({**CAUSAL, "eos_token_id": None}, DataError, "does not say which token ends a text"),
        ({**CAUSAL, "eos_token_id": 10**6}, DataError, "does not say which token ends a text"),
        ({**MASKS, "mask_token_id": 10**6}, DataError, "has no token 1000000, which is the mask of its kind"),
        ({**CAUSAL, "model_type": "bert", "architectures": ["BertForMaskedLM"]}, ConfigError, "is a masked language model"),
        ({**DREAM, "use_sliding_window": True}, DataError, "use_sliding_window"),
    ],
)
def test_a_model_that_no_preset_is_for_is_refused_in_a_line(tmp_path, config, kind, message):
    with pytest.raises(kind) as refused:
        own_backbone(model(tmp_path, config))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["no_package:model.gguf", "nothing.gguf"])
def test_a_model_that_is_not_there_is_refused(path):
    with pytest.raises(ConfigError):
        own_backbone(path)
