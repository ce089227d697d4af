"""The two constructions that the founding documents type, by their names: a whole recursive model, and a slot refiner.

They build what ``RecursiveLM`` and ``SlotRefiner`` are; nothing here computes. A batch is a ``components.batch.Batch``.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from components.backbones.backbone import BackboneModel
from components.backbones.recursive_lm import RecursiveLM
from components.batch import Batch
from components.model import Carry
from components.objective.supervision import constant, exponential_decay, last_only, linear_decay
from components.refiners.delta import Clamped
from components.refiners.entry import Normed
from components.refiners.recursive_core import RecursiveCore
from components.refiners.refiner import SlotRefiner
from components.refiners.sizes import create_slot_refiner

SCHEDULES: dict[str, Callable[..., list[float]]] = {
    "constant": constant, "linear_decay": linear_decay, "exponential_decay": exponential_decay
}  # fmt: skip
REQUIRED = ("vocab_size", "seq_len", "hidden_size")
DEFAULTS: dict[str, Any] = {
    "num_heads": 4, "num_layers": 2, "expansion": 4.0, "H_cycles": 3, "L_cycles": 3, "seed": 0,
    "enable_deep_supervision": False, "deep_supervision_weight": 0.5, "deep_supervision_schedule": "constant",
}  # fmt: skip


class RecursiveLLM(RecursiveLM):
    """A recursive language model from a configuration, supervised after every H cycle; weights are filled by ``seed``.

    Args:
        config: ``vocab_size``, ``seq_len`` and ``hidden_size``; and, where they differ from ``DEFAULTS``, ``num_heads``,
            ``num_layers`` (of the shared network), ``expansion``, ``H_cycles`` (supervised steps), ``L_cycles``, ``seed``,
            ``enable_deep_supervision`` (False: in training mode too, only the last step is read out and weighs),
            ``deep_supervision_weight``, ``deep_supervision_schedule`` ("constant", "linear_decay" or "exponential_decay").

    Raises:
        ValueError: a key is missing or not known, or a value does not fit.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        known = [*REQUIRED, *DEFAULTS]
        for name in config:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise ValueError(f"no setting of RecursiveLLM is called '{name}'; the nearest is '{near[0]}'")
        if missing := [name for name in REQUIRED if name not in config]:
            raise ValueError(f"RecursiveLLM needs {', '.join(REQUIRED)}, got no '{missing[0]}'")
        given = {**DEFAULTS, **config}
        if given["deep_supervision_schedule"] not in SCHEDULES:
            raise ValueError(f"deep_supervision_schedule is {', '.join(SCHEDULES)}, got '{given['deep_supervision_schedule']}'")
        core = partial(
            RecursiveCore, heads=given["num_heads"], steps=given["H_cycles"], blocks=given["num_layers"],
            expansion=given["expansion"], l_cycles=given["L_cycles"],
        )  # fmt: skip
        super().__init__(given["vocab_size"], given["seq_len"], given["hidden_size"], core)
        self.enable_deep_supervision = bool(given["enable_deep_supervision"])
        self.supervision = partial(SCHEDULES[given["deep_supervision_schedule"]], weight=given["deep_supervision_weight"])
        self.init_weights(torch.Generator().manual_seed(given["seed"]))

    @classmethod
    def described(cls, architecture: Mapping[str, Any], first_layer: int = 0) -> BackboneModel:
        """Build the same network as a plain ``RecursiveLM``; its weights are not set."""
        return RecursiveLM.described(architecture, first_layer)

    def forward(self, carry: Carry, batch: Batch, enable_deep_supervision: bool | None = None) -> tuple[Carry, dict[str, Any]]:
        """Take all H cycles and read out, see ``Model.forward``; None = in training mode, if the configuration enables it."""
        if enable_deep_supervision is None:
            enable_deep_supervision = self.training and self.enable_deep_supervision
        return super().forward(carry, batch, enable_deep_supervision)

    def supervision_weights(self) -> list[float]:
        """Give the weight of each of the "intermediate_logits" in the loss; the last is 1, the others 0 if not enabled."""
        return self.supervision(self.n_steps) if self.enable_deep_supervision else last_only(self.n_steps)


def create_slot_trm_refiner(
    dim: int = 1024,
    size: str = "base",
    *,
    delta_scale: float = 0.1,
    orthogonality_weight: float = 0.01,
    seed: int = 0,
    **changes: Any,
) -> SlotRefiner:
    """Make a slot refiner of the founding design (LayerNorm entry, no injection, clamped update); weights are filled by ``seed``.

    Args:
        dim: width of the backbone's hidden states; 1024 is the founding document's.
        size: see ``create_slot_refiner``.
        delta_scale: largest change of a channel at a step; smaller if training is unstable.
        orthogonality_weight: of the slots' overlap in the loss; larger if slots collapse.
        seed: of the weights.
        changes: other arguments of ``SlotRefiner``.

    Raises:
        ValueError: sizes that do not fit.
    """
    design = {"entry": Normed, "injection": None, "update": Clamped(delta_scale), "orthogonality": orthogonality_weight}
    refiner = create_slot_refiner(dim, size, **design | changes)
    refiner.init_weights(1.0, torch.Generator().manual_seed(seed))
    return refiner
