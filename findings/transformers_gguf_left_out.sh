#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0, torch 2.13.0 (CPU) and accelerate 1.15.0: scaled rotary positions of a llama GGUF file are
# left out without a word, and its tokenizer gets a token that the file has not.
#
# llama.cpp keeps the factors that divide rotary frequencies in a tensor `rope_freqs.weight` (so with Llama 3.1), and linear
# scaling as `llama.rope.scaling.type` and `.factor`. `AutoModelForCausalLM.from_pretrained(folder, gguf_file=...)` reads neither:
# its logits are those of the same file without them, the configuration says "default", no keys are reported as unexpected and
# nothing is logged. The configuration of the scaling given by hand does change the logits. So a model that was trained with
# scaling computes with other positions, and nobody is told.
#
# `AutoTokenizer.from_pretrained(folder, gguf_file=...)` adds `<|endoftext|>` to a byte-level vocabulary ("gpt2") that lacks it.
# Its id is one past the rows of the model's embedding: text that holds these characters, or whatever relies on len(tokenizer),
# then asks the model for an id that it has not.
#
# Output seen on 2026-11-29, Python 3.11:
#   rope_freqs.weight of 8: rope_type default, 0 unexpected keys, 0 warnings, logits differ by 0.0
#   rope.scaling linear by 8: rope_type default, 0 unexpected keys, 0 warnings, logits differ by 0.0
#   linear by 8, given by hand: logits differ by more than 1: True
#   tokens in the file 258, rows of the embedding 258, tokenizer 259, ids of "<|endoftext|>" [258]
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 \
  accelerate==1.15.0
cat > "$folder/left_out.py" <<'PYTHON'
import logging
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

FILE = "model.gguf"
WIDTH, HEADS, MLP, FACTOR = 32, 2, 64, 8.0
TOKENS = ["<end>", *sorted(ByteLevel.alphabet()), "ab"]


def write(folder, *, freqs=False, linear=False):
    """A llama of one block, its weights the same each time."""
    folder.mkdir()
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(folder / FILE, "llama")
    writer.add_context_length(256)
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    if linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(FACTOR)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(TOKENS) - 1)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output": (len(TOKENS), WIDTH)}
    shapes |= {f"blk.0.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (MLP, WIDTH), "blk.0.ffn_up": (MLP, WIDTH), "blk.0.ffn_down": (WIDTH, MLP)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    if freqs:
        writer.add_tensor("rope_freqs.weight", np.full(WIDTH // HEADS // 2, FACTOR, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


class Count(logging.Handler):
    records = 0

    def emit(self, record):
        Count.records += 1


def read(folder, **given):
    """Model, what was reported while it was read, and logits of 64 tokens."""
    Count.records = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, output_loading_info=True, **given)
    with torch.no_grad():
        logits = model.eval()(torch.arange(64)[None]).logits
    return model, (len(report["unexpected_keys"]), Count.records + len(caught)), logits


logging.getLogger("transformers").addHandler(Count(logging.WARNING))
work = Path(sys.argv[1])
plain, _, expected = read(write(work / "plain"))
seen = []
for case, options in {"rope_freqs.weight of 8": {"freqs": True}, "rope.scaling linear by 8": {"linear": True}}.items():
    model, (keys, warned), logits = read(write(work / case.split()[0], **options))
    kind, difference = model.config.rope_parameters["rope_type"], (logits - expected).abs().max().item()
    print(f"{case}: rope_type {kind}, {keys} unexpected keys, {warned} warnings, logits differ by {difference}")
    seen.append((kind, keys, warned, difference) == ("default", 0, 0, 0.0))

config = transformers.AutoConfig.from_pretrained(work / "plain", gguf_file=FILE)
config.rope_parameters = {"rope_type": "linear", "factor": FACTOR, "rope_theta": 10000.0}
scaled = bool((read(work / "plain", config=config)[2] - expected).abs().max() > 1)
print(f"linear by 8, given by hand: logits differ by more than 1: {scaled}")

tokenizer = transformers.AutoTokenizer.from_pretrained(work / "plain", gguf_file=FILE)
rows, ids = plain.get_input_embeddings().num_embeddings, tokenizer("<|endoftext|>").input_ids
print(f'tokens in the file {len(TOKENS)}, rows of the embedding {rows}, tokenizer {len(tokenizer)}, ids of "<|endoftext|>" {ids}')
seen += [scaled, (rows, len(tokenizer), ids) == (len(TOKENS), len(TOKENS) + 1, [len(TOKENS)])]
sys.exit(not all(seen))
PYTHON
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/env/bin/python" "$folder/left_out.py" "$folder"
