"""Tiny random checkpoints in their original layouts."""

import json

import torch
from safetensors.torch import save_file

DIM, LAYERS, HEADS, MLP, VOCAB, SEQ, EXPERTS = 16, 3, 2, 24, 37, 32, 4
LLADA = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": DIM, "n_layers": LAYERS, "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "mlp_hidden_size": MLP, "vocab_size": VOCAB, "embedding_size": VOCAB, "max_sequence_length": SEQ, "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5, "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False,
    "include_bias": False, "include_qkv_bias": False, "attention_layer_norm": False, "scale_logits": False, "input_emb_norm": False,
    "weight_tying": False, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
LLADA_MOE = {
    "model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "hidden_size": DIM, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "expert_intermediate_size": MLP, "dense_intermediate_size": 40,
    "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": None, "shared_expert_intermediate_size": None,
    "qk_layernorm": True, "vocab_size": VOCAB, "max_position_embeddings": SEQ, "rope_theta": 50000.0, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
DREAM = {
    "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": DIM, "num_hidden_layers": LAYERS,
    "intermediate_size": MLP, "num_attention_heads": HEADS, "num_key_value_heads": 1, "vocab_size": VOCAB,
    "max_position_embeddings": SEQ, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
    "use_sliding_window": False, "tie_word_embeddings": False,
}  # fmt: skip


def llada_weights():
    block = {
        "attn_norm": (DIM,), "ff_norm": (DIM,), "q_proj": (DIM, DIM), "k_proj": (DIM, DIM), "v_proj": (DIM, DIM),
        "attn_out": (DIM, DIM), "ff_proj": (MLP, DIM), "up_proj": (MLP, DIM), "ff_out": (DIM, MLP),
    }  # fmt: skip
    shapes = {f"model.transformer.blocks.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in block.items()}
    top = {"wte": (VOCAB, DIM), "ln_f": (DIM,), "ff_out": (VOCAB, DIM)}
    return shapes | {f"model.transformer.{name}.weight": shape for name, shape in top.items()}


def llada_moe_weights():
    head = DIM // HEADS
    block = {
        "input_layernorm": (DIM,), "post_attention_layernorm": (DIM,),
        "self_attn.q_proj": (DIM, DIM), "self_attn.k_proj": (DIM, DIM),
        "self_attn.v_proj": (DIM, DIM), "self_attn.o_proj": (DIM, DIM), "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
        "mlp.gate": (EXPERTS, DIM),
    }  # fmt: skip
    for expert in range(EXPERTS):
        block |= {f"mlp.experts.{expert}.{n}_proj": (DIM, MLP) if n == "down" else (MLP, DIM) for n in ("gate", "up", "down")}
    return hugging(block)


def dream_weights():
    kv = DIM // HEADS
    block = {
        "input_layernorm": (DIM,), "post_attention_layernorm": (DIM,),
        "self_attn.q_proj": (DIM, DIM), "self_attn.k_proj": (kv, DIM),
        "self_attn.v_proj": (kv, DIM), "self_attn.o_proj": (DIM, DIM), "mlp.gate_proj": (MLP, DIM), "mlp.up_proj": (MLP, DIM),
        "mlp.down_proj": (DIM, MLP),
    }  # fmt: skip
    biases = {f"model.layers.{i}.self_attn.{n}_proj.bias": (DIM if n == "q" else kv,) for i in range(LAYERS) for n in "qkv"}
    return hugging(block) | biases


def hugging(block):
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in block.items()}
    return shapes | {"model.embed_tokens.weight": (VOCAB, DIM), "model.norm.weight": (DIM,), "lm_head.weight": (VOCAB, DIM)}


LAYOUTS = {"llada": (LLADA, llada_weights), "llada_moe": (LLADA_MOE, llada_moe_weights), "dream": (DREAM, dream_weights)}


def wide(config, shapes):
    """The same layout with rows of weights as four bits want them: of whole blocks of 64."""
    sizes = {DIM: 64, MLP: 128}
    return (
        {name: sizes.get(value, value) if name in ("d_model", "mlp_hidden_size") else value for name, value in config.items()},
        {name: tuple(sizes.get(size, size) for size in shape) for name, shape in shapes.items()},
    )


def written(folder, config, shapes, drop=()):
    """A checkpoint with random weights, in two files as large ones are."""
    g = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=g) * 0.2 + (len(shape) == 1) for name, shape in shapes.items() if name not in drop
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def sonar(folder):
    """An encoder shaped as SONAR's, tiny and random, with a tokenizer that wants a language."""
    from transformers import M2M100Config, NllbTokenizer
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

    letters = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!=#+"]
    tokenizer = NllbTokenizer(vocab={token: i for i, token in enumerate(letters)}, merges=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=DIM, encoder_layers=2, encoder_attention_heads=HEADS, encoder_ffn_dim=MLP,
        decoder_layers=1, decoder_attention_heads=HEADS, decoder_ffn_dim=MLP, max_position_embeddings=256, init_std=0.3,
    )  # fmt: skip
    M2M100Encoder(config).save_pretrained(folder)
    return folder


def tied(folder):
    """A causal model whose head is its embedding table, as small Qwen3 and SmolLM2 have it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        head_dim=8, intermediate_size=MLP, max_position_embeddings=SEQ, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder
