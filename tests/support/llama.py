"""A small random transformer of the library's, as a backbone."""

import torch
import transformers

from components.backbones.pretrained_lm import PretrainedLM
from pipeline.models.discovery import discovered


def llama(dim, layers, dtype=torch.float32, **sizes):
    """A Llama of 11 ids and 8 positions, the same at every call, read as ``pipeline.models.pretrained`` reads one."""
    config = transformers.LlamaConfig(
        hidden_size=dim, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, vocab_size=11,
        max_position_embeddings=8, attn_implementation="sdpa", use_cache=False, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().to(dtype)
    with torch.device("meta"):
        parts = discovered(type(model)(config), config)
    return PretrainedLM(model, parts, {"dim": dim, "layers": layers, "vocab": 11, "seq": 8})
