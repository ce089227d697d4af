"""A workspace with a tiny pretrained model in it, a corpus of sums and a tokenizer, on which a preset of the 8 B ones can run."""

import json

import pytest
import torch
from torch.nn import functional as F

from pipeline.corpora.prepared import Prepared
from pipeline.text import tokenizer as bpe
from tests.conftest import run_stages, workspace

TEXTS = [(f"What is {i} + {i + 1}?", f"{i} + {i + 1} = {2 * i + 1}") for i in range(24)]
SETTINGS = {
    "DEVICE": "cpu", "PRECISION": "fp32", "STATE_DTYPE": "fp32", "HEADS": 2, "TAIL_LAYERS": 1, "EXTRACT_BATCH": 8,
    "ACCUMULATION": 1, "RECURSION_STEPS": 2, "WARMUP_STEPS": 4, "JOINT_STEPS": 3, "VALIDATE_EVERY": 2, "THREADS": 1,
    "answers.Answers.reference": "flexible",  # sums end with their results
}  # fmt: skip


def encoding():
    return bpe.trained((text for pair in TEXTS for text in pair), 300)


def run_over(folder, preset, checkpoint, stages, bindings):
    """Run ``stages`` of ``preset`` in ``folder``; ``checkpoint(folder, encoding)`` writes the model."""
    workspace(folder, preset)
    raw = folder / "raw" / "gsm8k"
    raw.mkdir(parents=True)
    for name, pairs in (("train", TEXTS), ("test", TEXTS[:6])):
        (raw / f"{name}.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
    trained = encoding()
    (folder / "checkpoint").mkdir()
    checkpoint(folder / "checkpoint", trained)
    corpus = {"tokenizer": "checkpoint", "sequence": 48, "validation": 0.3}
    given = {**SETTINGS, "pretrained": {"model": {"path": "checkpoint", "dtype": "fp32"}}, **bindings}
    given["jsonl.QuestionAnswers"] = corpus | bindings.get("jsonl.QuestionAnswers", {})
    (folder / "params.yaml").write_text(json.dumps({"preset": preset, "common": {"bindings": given}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
        run_stages(folder, stages)
    return folder


def answer_nll(model):
    """Mean over the tokens of the test split's answers of -log p(next token), by a causal model of transformers."""
    split = Prepared("data/prepared").split("test")
    labels = torch.where(split.response, split.tokens.long(), -100)
    with torch.no_grad():
        logits = model(input_ids=split.tokens.long(), attention_mask=split.valid.long()).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).item()
