"""Masked-diffusion checkpoints whose own code is not needed: which native class computes the same, and where each weight goes.

Nothing of a checkpoint's code runs. A family is recognised by its config.json and refused where that asks for what the native class
does not do. Sources: Nie et al., LLaDA (2025); the LLaDA-MoE and Dream model cards; equality was checked bit for bit in fp32
against those projects' own code (see docs/backbones.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import DataError


@dataclass(frozen=True)
class Family:
    """How to read a checkpoint of this kind.

    Attributes:
        model_type: of the native class in transformers.
        config: config.json -> the native class's arguments.
        keys: regular expression -> replacement, for weights' names; one group each.
        shift: see ``PretrainedLM``.
        mask_id: that the published checkpoint uses.
        tokenizer: native class that reads its vocabulary, if no tokenizer.json is published.
    """

    model_type: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    keys: dict[str, str] = field(default_factory=dict)
    shift: int = 0
    mask_id: int | None = None
    tokenizer: str | None = None


def _llada(config: Mapping[str, Any]) -> dict[str, Any]:
    _required(config, "LLaDA", {
        "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False,
        "include_bias": False, "include_qkv_bias": False, "attention_layer_norm": False, "scale_logits": False,
        "input_emb_norm": False,
    })  # fmt: skip
    return {
        "hidden_size": config["d_model"], "intermediate_size": config["mlp_hidden_size"], "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"], "num_key_value_heads": config.get("n_kv_heads") or config["n_heads"],
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "max_position_embeddings": config["max_sequence_length"],
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5), "rope_parameters": _rope(config, 10_000.0),
        "tie_word_embeddings": bool(config.get("weight_tying", False)), "hidden_act": "silu",
        "bos_token_id": None, "eos_token_id": config.get("eos_token_id"), "pad_token_id": config.get("pad_token_id"),
    }  # fmt: skip


def _llada_moe(config: Mapping[str, Any]) -> dict[str, Any]:
    _required(config, "LLaDA-MoE", {"norm_topk_prob": False, "shared_expert_intermediate_size": None, "qk_layernorm": True})
    heads = config["num_attention_heads"]
    return {
        "hidden_size": config["hidden_size"], "num_hidden_layers": config["num_hidden_layers"], "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads, "vocab_size": config["vocab_size"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "intermediate_size": config.get("dense_intermediate_size") or config["hidden_size"],
        "moe_intermediate_size": config["expert_intermediate_size"], "num_experts": config["num_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"], "norm_topk_prob": False, "decoder_sparse_step": 1,
        "max_position_embeddings": config["max_position_embeddings"], "rms_norm_eps": config["rms_norm_eps"],
        "rope_parameters": _rope(config, 10_000.0), "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "attention_bias": False, "eos_token_id": config.get("eos_token_id"), "pad_token_id": config.get("pad_token_id"),
    }  # fmt: skip


def _dream(config: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
        "max_position_embeddings", "rms_norm_eps", "hidden_act", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    _required(config, "Dream", {"use_sliding_window": False})
    fields = {name: config[name] for name in names if name in config}
    return {**fields, "rope_parameters": _rope(config, 1_000_000.0), "tie_word_embeddings": bool(config.get("tie_word_embeddings"))}


def _rope(config: Mapping[str, Any], default: float) -> dict[str, Any]:
    if config.get("rope_scaling"):
        raise DataError(f"this checkpoint scales its rotary positions ({config['rope_scaling']}), which is not supported")
    return {"rope_type": "default", "rope_theta": float(config.get("rope_theta", default))}


def _required(config: Mapping[str, Any], name: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key in config and config[key] not in (value, None) and not (value is None and not config[key]):
            raise DataError(f"this {name} checkpoint has {key} = {config[key]!r}, and only {value!r} is supported")


_LLADA_LAYER = {
    "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm", "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj", "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}  # fmt: skip
FAMILIES: dict[str, Family] = {
    "llada": Family(
        "llama", _llada, mask_id=126336,
        keys={
            **{rf"^model\.transformer\.blocks\.(\d+)\.{old}\.": rf"model.layers.\1.{new}." for old, new in _LLADA_LAYER.items()},
            r"^model\.transformer\.wte\.": "model.embed_tokens.", r"^model\.transformer\.ln_f\.": "model.norm.",
            r"^model\.transformer\.ff_out\.": "lm_head.",
        },
    ),
    "llada_moe": Family("qwen3_moe", _llada_moe, mask_id=156895),
    "dream": Family("qwen2", _dream, shift=1, mask_id=151666, tokenizer="Qwen2Tokenizer"),
}  # fmt: skip


def family(config: Mapping[str, Any]) -> str | None:
    """Name of the family that a config.json belongs to; None for what transformers itself knows."""
    kind, architectures = str(config.get("model_type", "")).lower(), " ".join(config.get("architectures") or ()).lower()
    if "llada" in kind or "llada" in architectures:
        return "llada_moe" if "moe" in kind + architectures else "llada"
    return "dream" if "dream" in kind else None
