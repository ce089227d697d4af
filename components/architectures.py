"""Cores and backbones by name: a model's file says what it holds, and no code comes with it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from components.adapter import Adapter
from components.backbone import BackboneModel
from components.cascade import Cascade
from components.core import Core
from components.hybrid import Hybrid
from components.mlp_refiner import MLPRefiner
from components.recursive_core import RecursiveCore
from components.recursive_lm import RecursiveLM
from components.refiner import SlotRefiner
from components.tiny_lm import TinyLM

CORES: dict[str, Callable[..., Core]] = {
    core.__name__: core for core in (SlotRefiner, RecursiveCore, MLPRefiner, Adapter, Cascade, Hybrid)
}
BACKBONES: dict[str, Callable[..., BackboneModel]] = {model.__name__: model for model in (TinyLM, RecursiveLM)}


def build_core(architecture: Mapping[str, Any]) -> Core:
    """The core that ``architecture`` describes, cores inside it too; its weights are not set.

    Raises:
        ValueError: a core of that name is not known here.
    """
    settings = dict(architecture)
    return _known(CORES, settings.pop("core", None))(**_with_cores(settings))


def build_backbone(architecture: Mapping[str, Any], first_layer: int = 0) -> BackboneModel:
    """The backbone that ``architecture`` describes, from ``first_layer`` on; its weights are not set.

    Raises:
        ValueError: a backbone of that name is not known here, or it has no such layer.
    """
    settings = {name: value for name, value in architecture.items() if name != "model"}
    return _known(BACKBONES, architecture.get("model"))(**_with_cores(settings), first_layer=first_layer)


def _known(table: Mapping[str, Any], name: Any) -> Any:
    if name not in table:
        raise ValueError(f"nothing is called '{name}'; there are {', '.join(table)}")
    return table[name]


def _with_cores(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which descriptions of cores have become what makes them."""
    return {
        name: partial(_core_of_width, value) if isinstance(value, Mapping) and "core" in value else value
        for name, value in settings.items()
    }


def _core_of_width(architecture: Mapping[str, Any], dim: int, **given: Any) -> Core:
    return build_core({**architecture, "dim": dim, **given})
