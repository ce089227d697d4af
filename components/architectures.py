"""Cores by name: a model's file says what it holds, and no code comes with it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from components.adapter import Adapter
from components.cascade import Cascade
from components.core import Core
from components.hybrid import Hybrid
from components.mlp_refiner import MLPRefiner
from components.recursive_core import RecursiveCore
from components.refiner import SlotRefiner

CORES: dict[str, Callable[..., Core]] = {
    core.__name__: core for core in (SlotRefiner, RecursiveCore, MLPRefiner, Adapter, Cascade, Hybrid)
}


def build_core(architecture: Mapping[str, Any]) -> Core:
    """The core that ``architecture`` describes, cores inside it too; its weights are not set.

    Raises:
        ValueError: a core of that name is not known here.
    """
    settings = dict(architecture)
    return _known(CORES, settings.pop("core", None))(**_with_cores(settings))


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
