"""Tiny GGUF files, written by the ``gguf`` package's own writer, from a model of transformers: names, order of rows, blocks."""

import json

import numpy as np
import torch

from tests.support.checkpoints import SEQ
from tests.support.over_checkpoint import encoding

WIDTH, LAYERS, HEADS, KV_HEADS, MLP = 32, 3, 2, 1, 64
SPECIAL = ["<pad>", "<end>", "<mask>"]
TEMPLATE = "{% for m in messages %}<end>{{ m['content'] }}{% endfor %}"


def llama(vocab, *, tied=True, kind="Llama", seq=SEQ, **sizes):
    """A random model of transformers."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocab, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        intermediate_size=MLP, max_position_embeddings=seq, tie_word_embeddings=tied, initializer_range=0.3, **sizes,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def interleaved(rows, heads):
    """Rows of queries and keys as llama.cpp turns them: the two halves of a head by turns."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def quantised(name, value, kind):
    """The blocks of a weight; vectors stay float32."""
    import gguf

    types = gguf.GGMLQuantizationType
    kind = types[kind] if value.ndim == 2 else types.F32
    return gguf.quantize(value.numpy(), kind), kind


def dequantised(model, kind):
    """What must be read again, by the gguf package alone: no row is moved, for none was when the blocks were made."""
    import gguf

    weights = dict(model.named_parameters())  # tied ones once
    return {name: torch.from_numpy(gguf.dequantize(*quantised(name, value.detach(), kind))) for name, value in weights.items()}


def written(path, model, kind="F32", *, tokens=None, architecture="llama", pre="smollm", changed=None, left_out=(), extra=None):
    """A GGUF file at ``path``.

    Args:
        model: of transformers.
        kind: of its matrices ("F32", "F16", "Q8_0", "Q4_1").
        tokens: a tokenizer that is stored; None = none.
        architecture: that metadata and names of tensors follow.
        pre: how the tokenizer says that it splits text.
        changed: entries of the metadata, by name: strings.
        left_out: names of tensors that are not written.
        extra: tensors beside the model's.
    """
    import gguf

    config, entries = model.config, {"general.architecture": architecture, "general.license": "mit"} | (changed or {})
    writer = gguf.GGUFWriter(path, entries.pop("general.architecture"))
    writer.arch = architecture
    for add, value in (
        (writer.add_block_count, LAYERS), (writer.add_context_length, config.max_position_embeddings),
        (writer.add_embedding_length, WIDTH), (writer.add_feed_forward_length, MLP), (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV_HEADS), (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_rope_freq_base, config.rope_parameters["rope_theta"]), (writer.add_vocab_size, config.vocab_size),
    ):  # fmt: skip
        add(value)
    for name, value in entries.items():
        writer.add_string(name, value)
    if tokens is not None:
        add_tokenizer(writer, tokens, pre)
    names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture), LAYERS)
    for name, value in model.named_parameters():
        stored = names.get_name(name, (".weight", ".bias"))
        if stored in left_out:
            continue
        blocks, blocks_kind = quantised(name, value.detach(), kind)
        if architecture == "llama" and (".attn_q." in stored or ".attn_k." in stored):
            blocks = interleaved(blocks, HEADS if ".attn_q." in stored else KV_HEADS)
        writer.add_tensor(stored, np.ascontiguousarray(blocks), raw_dtype=blocks_kind)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, tokens, pre):
    """Store a byte-level tokenizer as llama.cpp does: tokens by id, merges, which tokens are special, and a template of chats."""
    import gguf

    vocabulary = tokens.get_vocab(with_added_tokens=True)
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in by_id]
    merges = [" ".join(pair) for pair in json.loads(tokens.to_str())["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(by_id)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocabulary["<end>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    writer.add_chat_template(TEMPLATE)


def tokenizer():
    """The tokenizer of the sums in ``over_checkpoint``."""
    return encoding().tokenizer
