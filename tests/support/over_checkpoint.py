"""A workspace with a tiny pretrained model in it, a corpus of sums and a tokenizer, on which a preset of the 8 B ones can run."""

import json

import pytest

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
