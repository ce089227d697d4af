"""Cores by name: a model's file says what it holds, and no code comes with it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from components.refiners.adapter import Adapter
from components.refiners.cascade import Cascade
from components.refiners.chunk_masking import ChunkMasking
from components.refiners.core import Core
from components.refiners.hybrid import Hybrid
from components.refiners.memory import Memory
from components.refiners.mlp_refiner import MLPRefiner
from components.refiners.recursive_core import RecursiveCore
from components.refiners.refiner import SlotRefiner
from components.refiners.tapped import Tapped

CORES: dict[str, type[Core]] = {
    core.__name__: core
    for core in (
        SlotRefiner, RecursiveCore, MLPRefiner, Adapter, Cascade, Tapped, Hybrid, ChunkMasking, Memory,
    )
}  # fmt: skip


def build_core(architecture: Mapping[str, Any]) -> Core:
    """The core that ``architecture`` describes, cores inside it too; its weights are not set.

    Raises:
        ValueError: a core of that name is not known here, or it cannot be built as described.
    """
    settings = dict(architecture)
    name = settings.pop("core", None)
    if name not in CORES:
        raise ValueError(f"no core is called '{name}'; there are {', '.join(CORES)}")
    inner = {key: partial(_core_of_width, part) for key, part in settings.items() if isinstance(part, Mapping) and "core" in part}
    return CORES[name].described(settings | inner)


def _core_of_width(architecture: Mapping[str, Any], dim: int) -> Core:
    return build_core({**architecture, "dim": dim})
