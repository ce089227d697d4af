"""Architectures of transformers, tiny and random: cut anywhere they compute what the whole does, bit for bit, or are refused."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from components.backbones.pretrained_lm import PretrainedLM
from components.backbones.selfcheck import Refused, selfcheck
from components.batch import Batch
from components.inference.left_to_right import continued, left_to_right
from components.inference.sampling import Sampler
from pipeline.errors import ConfigError
from pipeline.models.discovery import discovered
from pipeline.models.transformers import key_value_cache
from tests.support.causal import plainly

transformers = pytest.importorskip("transformers")

DIM, LAYERS, HEADS, VOCAB, SEQ = 32, 3, 4, 61, 64
SIZES = {
    "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 48, "vocab_size": VOCAB,
    "max_position_embeddings": SEQ,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MOE = {**GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False}


@dataclass(frozen=True)
class Kind:
    """Class, configuration, arguments beyond ``SIZES``; ``causal`` = sees only what stands before."""

    model: str
    config: str
    given: dict[str, Any] = field(default_factory=dict)
    causal: bool = False
    attention: str = "sdpa"
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)

    def build(self) -> tuple[Any, Any]:
        config = getattr(transformers, self.config)(**{**IDS, **self.sizes, **self.given})
        config.use_cache, config._attn_implementation = False, self.attention
        if not self.causal:
            config.is_causal = False
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms that are one and biases that are zero would hide mistakes
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model, config


KINDS = {
    "BERT": Kind("BertForMaskedLM", "BertConfig"),
    "RoBERTa": Kind("RobertaForMaskedLM", "RobertaConfig"),
    "XLM-RoBERTa": Kind("XLMRobertaForMaskedLM", "XLMRobertaConfig"),
    "MPNet": Kind("MPNetForMaskedLM", "MPNetConfig", attention="eager"),
    "ELECTRA": Kind("ElectraForMaskedLM", "ElectraConfig", {"embedding_size": DIM}),
    "ModernBERT": Kind("ModernBertForMaskedLM", "ModernBertConfig", {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "EuroBERT": Kind("EuroBertForMaskedLM", "EuroBertConfig", {"mask_token_id": 3}),
    "LLaDA": Kind("LlamaForCausalLM", "LlamaConfig"),
    "LLaDA-MoE": Kind("Qwen3MoeForCausalLM", "Qwen3MoeConfig", MOE),
    "Dream": Kind("Qwen2ForCausalLM", "Qwen2Config", {"num_key_value_heads": 2}),
    "Llama": Kind("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2}, causal=True),
    "Qwen2": Kind("Qwen2ForCausalLM", "Qwen2Config", {"num_key_value_heads": 2}, causal=True),
    "Qwen3, sliding": Kind(
        "Qwen3ForCausalLM", "Qwen3Config",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, causal=True,
    ),
    "Qwen3-MoE": Kind("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**MOE, "norm_topk_prob": True}, causal=True),
    "Gemma 2 without cap": Kind(
        "Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "sliding_window": 4, "final_logit_softcapping": None}, causal=True,
        attention="eager",
    ),
    "Gemma 3": Kind("Gemma3ForCausalLM", "Gemma3TextConfig", {**GROUPED, "sliding_window": 4}, causal=True),
    "Mistral, sliding": Kind("MistralForCausalLM", "MistralConfig", {"num_key_value_heads": 2, "sliding_window": 4}, causal=True),
    "Phi-3": Kind("Phi3ForCausalLM", "Phi3Config", {"num_key_value_heads": 2}, causal=True),
    "OLMo 2": Kind("Olmo2ForCausalLM", "Olmo2Config", causal=True),
    "GPT-NeoX": Kind("GPTNeoXForCausalLM", "GPTNeoXConfig", causal=True),
    "GPT-2": Kind(
        "GPT2LMHeadModel", "GPT2Config", causal=True,
        sizes={"n_embd": DIM, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": SEQ},
    ),
    "Granite": Kind("GraniteForCausalLM", "GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.5}, causal=True),
}  # fmt: skip
REFUSED = {
    "T5": (
        Kind(
            "T5ForConditionalGeneration", "T5Config", causal=True,
            sizes={"d_model": DIM, "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": VOCAB},
        ),
        "position bias that layer 0 makes",
    ),
    "Gemma 2": (Kind("Gemma2ForCausalLM", "Gemma2Config", GROUPED, causal=True, attention="eager"), "caps its logits"),
    "DeBERTa-v2": (
        Kind("DebertaV2ForMaskedLM", "DebertaV2Config", {"relative_attention": True, "pos_att_type": ["p2c"]}, attention="eager"),
        "does not give the model's logits",
    ),
    "DistilBERT": (
        Kind(
            "DistilBertForMaskedLM", "DistilBertConfig",
            sizes={"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48, "vocab_size": VOCAB},
        ),
        "does not give the model's logits",
    ),
}  # fmt: skip


def backbone(kind):
    model, config = kind.build()
    with torch.device("meta"):
        parts = discovered(type(model)(config), config)
    cache = key_value_cache(type(model), config) if kind.causal else None
    architecture = {"dim": DIM, "layers": LAYERS, "vocab": VOCAB, "seq": SEQ}
    return PretrainedLM(model, parts, architecture, causal=kind.causal, cache=cache)


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def made(kind):
    return backbone(kind)


def batch(hidden=None):
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, VOCAB, (3, 9), generator=g)
    attention = torch.arange(9) < torch.tensor([9, 5, 7])[:, None]
    tokens = torch.where(attention, tokens, 0)
    nothing = torch.zeros_like(attention)
    return Batch(tokens, tokens, nothing, nothing.float(), attention, hidden)


def test_there_are_enough_of_them():
    assert len(KINDS) >= 15 and len(REFUSED) >= 3


def test_it_passes_its_selfcheck(made, kind):
    found = selfcheck(made, causal=kind.causal)
    assert found["split"] == 0 and found["readout"] <= 1e-6 and found["padding"] <= 1e-6


def test_it_is_found_out_if_it_looks_the_wrong_way(made, kind):
    with pytest.raises(Refused, match="looks ahead" if not kind.causal else "is causal"):
        selfcheck(made, causal=not kind.causal)


def test_cut_anywhere_states_and_gradients_are_those_of_the_whole(made):
    whole, known = batch(), batch().attention
    expected = made.layers.run({"input_ids": whole.tokens, "attention_mask": known.long()})[0]
    expected[known].square().sum().backward()
    for split in range(1, LAYERS + 1):
        names = [
            n
            for n, _ in made.model.named_parameters()
            if any(f"{made.layers.parts.layers}.{i}." in n for i in range(split, LAYERS))
        ]
        parameters = dict(made.model.named_parameters())
        gradients = [parameters[name].grad.clone() for name in names]
        hidden = made.trunk(whole.tokens, known, split).detach()
        tail = made.layers.run({"input_ids": whole.tokens, "attention_mask": known.long()}, split, None, hidden.requires_grad_())[0]
        assert torch.equal(tail[known], expected[known]), split
        if names:
            found = torch.autograd.grad(tail[known].square().sum(), [parameters[name] for name in names])
            assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True)), split
    made.zero_grad()


def test_its_heads_are_as_wide_as_what_they_are_projected_from(made):
    _, heads = made.states_and_heads(batch(), (LAYERS - 1, 0))
    width = heads.shape[-1] // 2
    assert heads.shape == (3, 9, 2 * width) and width in (DIM, HEADS * 8)


WINDOWS = ("Qwen3, sliding", "Gemma 2 without cap", "Gemma 3", "Mistral, sliding")  # a window of slots would count gaps too


@torch.no_grad()
def test_with_its_cache_it_writes_what_it_writes_without_or_it_has_none(made, kind):
    cache = made.key_value_cache()
    assert (cache is not None) == (kind.causal and kind not in [KINDS[name] for name in WINDOWS])
    if cache is None:
        return
    tokens = torch.cat([batch().tokens, torch.zeros(3, 6, dtype=torch.long)], 1)
    place = torch.arange(15) - batch().attention.sum(1, keepdim=True)
    tokens, attention = torch.where((place >= 0) & (place < 6), VOCAB, tokens), place < 6
    *_, last = left_to_right(continued(made, cache, attention, 0), tokens, VOCAB, Sampler())
    plain = plainly(made, tokens, VOCAB, attention=attention)
    assert torch.equal(last.tokens, plain.tokens)
    torch.testing.assert_close(last.probability, plain.probability, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_cut_is_refused_with_the_reason(name):
    kind, reason = REFUSED[name]
    with pytest.raises((ConfigError, Refused), match=reason):
        selfcheck(backbone(kind), causal=kind.causal)
