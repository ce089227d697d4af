"""Folders of small models with random weights, as the stages leave them: one that solves puzzles, one that answers in text."""

import torch

from components.backbones.tiny_lm import TinyLM
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except
from pipeline.corpora.prepared import Split, Vocabulary, write
from pipeline.manifests import write_manifest
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import save_model
from pipeline.models.model_folder import ModelFolder
from pipeline.text import prompt_template
from pipeline.text import tokenizer as bpe
from pipeline.text.prompt_template import PromptTemplate

PUZZLES = Vocabulary(size=5, mask_id=4, pad_id=4, sequence=16, rendering="sudoku")
TEXTS = ["Janet has 12 apples. How many?", "Tom buys 3 pears and 4 plums.", "12 + 3 = 15"]
PUZZLE = "12../..../..4./..2."


def puzzles(folder):
    """``data/backbone``, ``data/prepared``, ``outputs/joint`` and what evaluate found of it."""
    model = {"exact": {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 30}, "nll": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 30}}
    written(folder, PUZZLES)
    looked_at = {"headline": "test_5", "evaluated": {"joint": ModelFolder(folder / "outputs/joint", "joint").manifest.digest}}
    write_manifest(folder / "outputs/evaluate/metrics.json", {**looked_at, "models": {"frozen": model, "joint": model}})
    return folder


def texts(folder, prompt="Q: {question}\n", more=0, causal=False):
    """The same with a tokenizer, and nothing evaluated; the model has ``more`` ids than the tokenizer."""
    encoding = bpe.trained(TEXTS, 290)
    prompt_template.write(folder / "data/prepared", encoding, PromptTemplate(prompt, encoding.special))
    mask = encoding.size if causal else encoding.id("mask")
    vocabulary = Vocabulary(encoding.size, mask, encoding.id("pad"), 48, "text", causal)
    split = Split(torch.zeros(1, 48).int(), torch.ones(1, 48, dtype=torch.bool), torch.zeros(1).long())
    write(folder / "data/prepared", vocabulary, {"train": split, "validation": split}, {})
    return written(folder, vocabulary, more)


def written(folder, vocabulary, more=0, refiner=None):
    base = TinyLM(vocab=vocabulary.size + more, seq=vocabulary.sequence, dim=16, layers=2, heads=2)
    base.init_weights(torch.Generator().manual_seed(0))
    save_backbone(folder / "data/backbone", base, vocabulary)
    backbone = Backbone(folder / "data/backbone")
    refiner = SlotRefiner(dim=16, heads=2, steps=3) if refiner is None else refiner
    model = RefinedLM(backbone.model(), refiner)
    model.refiner.init_weights(1.0, g := torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in (*model.refiner.parameters(), *model.backbone.blocks["1"].parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)  # it says something else than the backbone
    freeze_except(model, ["refiner", "backbone.blocks.1"])
    save_model(folder / "outputs/joint", model, backbone)
    return folder
