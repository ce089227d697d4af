"""Backbones by name: a model's file says what it holds, and no code comes with it. Knows no refiner: an edit of one must not run
the extraction again.
"""

from collections.abc import Mapping
from typing import Any

from components.backbones.backbone import BackboneModel
from components.backbones.recursive_lm import RecursiveLM
from components.backbones.sentence_table import SentenceTable
from components.backbones.tiny_lm import TinyLM

BACKBONES: dict[str, type[BackboneModel]] = {model.__name__: model for model in (TinyLM, RecursiveLM, SentenceTable)}


def build_backbone(architecture: Mapping[str, Any], first_layer: int = 0) -> BackboneModel:
    """The backbone that ``architecture`` describes, from ``first_layer`` on; its weights are not set.

    Raises:
        ValueError: a backbone of that name is not known here, or it has no such layer.
    """
    name = architecture.get("model")
    if name not in BACKBONES:
        raise ValueError(f"no backbone is called '{name}'; there are {', '.join(BACKBONES)}")
    return BACKBONES[name].described(architecture, first_layer)
